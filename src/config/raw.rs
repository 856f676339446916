//! The configuration as written in JSON, before validation.

use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::direction::Direction;
use crate::local::share::Share;
use crate::pattern::Pattern;
use crate::peer::Field;

/// The keys of the configuration with their raw values, in the order of the text. Unlike a map of
/// `serde_json`, it refuses a repeated key; and it is a fourth of the code that serde derives for a
/// struct with a field for each key.
#[derive(Debug)]
pub(super) struct Raw(pub(super) Vec<(String, Value)>);

impl Raw {
    /// The value of a key, if present; unlike an `Option`, null is present.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        let mut values = self.0.iter();
        values
            .find(|(known, _)| known == key)
            .map(|(_, value)| value)
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Keys)
    }
}

struct Keys;

impl<'de> Visitor<'de> for Keys {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut raw = Raw(Vec::new());
        while let Some(key) = map.next_key::<String>()? {
            if raw.get(&key).is_some() {
                return Err(A::Error::custom(format_args!("duplicate field `{key}`")));
            }
            let value = map.next_value()?;
            raw.0.push((key, value));
        }
        Ok(raw)
    }
}

/// An integer from `MIN` to `MAX`. An integral float is accepted as well,
/// because a protobuf `Struct` turns integers into floats.
#[derive(Deserialize)]
#[serde(try_from = "serde_json::Number")]
pub(super) struct Integer<const MIN: u32, const MAX: u32>(u32);

impl<const MIN: u32, const MAX: u32> From<Integer<MIN, MAX>> for u32 {
    fn from(Integer(integer): Integer<MIN, MAX>) -> Self {
        integer
    }
}

impl<const MIN: u32, const MAX: u32> From<Integer<MIN, MAX>> for usize {
    fn from(Integer(integer): Integer<MIN, MAX>) -> Self {
        Self::try_from(integer).unwrap_or(Self::MAX)
    }
}

impl<const MIN: u32, const MAX: u32> TryFrom<serde_json::Number> for Integer<MIN, MAX> {
    type Error = &'static str;

    fn try_from(number: serde_json::Number) -> Result<Self, Self::Error> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let of_float = |float: f64| {
            let is_integer = float.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&float);
            is_integer.then_some(float as u64)
        };
        let integer = number.as_u64().or_else(|| of_float(number.as_f64()?));
        integer
            .and_then(|integer| u32::try_from(integer).ok())
            .filter(|integer| (MIN..=MAX).contains(integer))
            .map(Self)
            .ok_or("not an integer in the range")
    }
}

/// A list of non-empty texts.
#[derive(Deserialize)]
#[serde(try_from = "Vec<String>")]
pub(super) struct Names(Vec<String>);

impl TryFrom<Vec<String>> for Names {
    type Error = &'static str;

    fn try_from(names: Vec<String>) -> Result<Self, Self::Error> {
        if names.iter().any(String::is_empty) {
            return Err("an empty name");
        }
        Ok(Self(names))
    }
}

impl From<Names> for Vec<String> {
    fn from(Names(names): Names) -> Self {
        names
    }
}

/// `direction`
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawDirection {
    Auto,
    Inbound,
    Outbound,
    Gateway,
}

impl From<RawDirection> for Option<Direction> {
    fn from(direction: RawDirection) -> Self {
        match direction {
            RawDirection::Auto => None,
            RawDirection::Inbound => Some(Direction::Inbound),
            RawDirection::Outbound => Some(Direction::Outbound),
            RawDirection::Gateway => Some(Direction::Gateway),
        }
    }
}

/// `external_clusters`
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ExternalClusters {
    Skip,
    Send,
}

impl From<ExternalClusters> for bool {
    /// Whether they are skipped.
    fn from(clusters: ExternalClusters) -> Self {
        matches!(clusters, ExternalClusters::Skip)
    }
}

/// `share`
#[derive(Deserialize)]
#[serde(try_from = "Value")]
pub(super) enum RawShare {
    Preset(Preset),
    Only(Only),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Preset {
    All,
    Minimal,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Only {
    #[serde(default, deserialize_with = "not_null")]
    fields: Option<Vec<Field>>,
    #[serde(default, deserialize_with = "not_null")]
    labels: Option<Vec<Pattern>>,
}

fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl TryFrom<Value> for RawShare {
    type Error = serde_json::Error;

    fn try_from(value: Value) -> Result<Self, Self::Error> {
        if value.is_object() {
            Only::deserialize(value).map(Self::Only)
        } else {
            Preset::deserialize(value).map(Self::Preset)
        }
    }
}

impl From<RawShare> for Share {
    fn from(share: RawShare) -> Self {
        match share {
            RawShare::Preset(Preset::All) => Self::All,
            RawShare::Preset(Preset::Minimal) => Self::Minimal,
            RawShare::Only(Only { fields, labels }) => Self::Only { fields, labels },
        }
    }
}
