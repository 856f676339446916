//! The configuration as written in JSON, before validation.

use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::direction::Direction;
use crate::local::share::Share;
use crate::pattern::Pattern;
use crate::peer::Field;

/// Reads JSON. Unlike a `Value` of `serde_json`, it refuses a repeated key, and names it with the
/// keys that lead to it: `node.LABELS.app`.
pub(super) fn read(json: &[u8]) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let mut path = String::new();
    let value = Json { path: &mut path }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

struct Json<'p> {
    /// The keys that lead to it.
    path: &'p mut String,
}

impl<'de> DeserializeSeed<'de> for Json<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Json<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(Json { path: self.path })? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        let end = self.path.len();
        while let Some(key) = object.next_key::<String>()? {
            if end > 0 {
                self.path.push('.');
            }
            self.path.push_str(&key);
            if values.contains_key(&key) {
                return Err(A::Error::custom(format_args!(
                    "duplicate field `{}`",
                    self.path
                )));
            }
            let value = object.next_value_seed(Json { path: self.path })?;
            values.insert(key, value);
            self.path.truncate(end);
        }
        Ok(Value::Object(values))
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

/// Reads the value of `share`.
pub(super) fn share(json: &Value) -> Result<Share, serde_json::Error> {
    if json.is_object() {
        let Only { fields, labels } = Only::deserialize(json)?;
        return Ok(Share::Only { fields, labels });
    }
    Ok(match Preset::deserialize(json)? {
        Preset::All => Share::All,
        Preset::Minimal => Share::Minimal,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Preset {
    All,
    Minimal,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Only {
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
