//! Metrics as Envoy keeps them: every definition gets its own id, and definitions of the same name share a value.

use crate::Status;
use std::collections::BTreeMap;

/// The low bits of an id encode the kind.
const KIND_MASK: u32 = 3;
/// The distance between ids of the same kind.
const ID_STEP: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn from_guest(value: u32) -> Option<Self> {
        Some(match value & KIND_MASK {
            0 => Self::Counter,
            1 => Self::Gauge,
            2 => Self::Histogram,
            _ => return None,
        })
    }
}

#[derive(Debug, Default)]
pub(crate) struct Metrics {
    names: BTreeMap<u32, String>,
    values: BTreeMap<String, u64>,
}

impl Metrics {
    pub(crate) fn define(&mut self, kind: u32, name: &str) -> Result<u32, Status> {
        if kind > Kind::Histogram as u32 {
            return Err(Status::BadArgument);
        }
        let last = self.names.keys().rev().find(|id| *id & KIND_MASK == kind);
        let id = last.copied().unwrap_or(kind) + ID_STEP;
        self.names.insert(id, name.to_owned());
        self.values.entry(name.to_owned()).or_default();
        Ok(id)
    }

    /// The name of a metric, or its id if it is unknown.
    pub(crate) fn name(&self, id: u32) -> String {
        self.names
            .get(&id)
            .cloned()
            .unwrap_or_else(|| format!("#{id}"))
    }

    /// A counter only grows, a gauge goes both ways, and a histogram cannot be incremented.
    pub(crate) fn increment(&mut self, id: u32, offset: i64) -> Result<(), Status> {
        let kind = Kind::from_guest(id);
        let value = self.value_mut(id);
        match (kind, value) {
            (Some(Kind::Histogram) | None, _) => Err(Status::BadArgument),
            (_, None) => Err(Status::NotFound),
            (Some(Kind::Counter), _) if offset <= 0 => Err(Status::BadArgument),
            (Some(_), Some(value)) => {
                *value = value.wrapping_add_signed(offset);
                Ok(())
            }
        }
    }

    /// A counter grows by the value; a gauge or histogram is set to it.
    pub(crate) fn record(&mut self, id: u32, recorded: u64) -> Result<(), Status> {
        let kind = Kind::from_guest(id);
        let value = self.value_mut(id).ok_or(Status::NotFound)?;
        *value = if kind == Some(Kind::Counter) {
            value.wrapping_add(recorded)
        } else {
            recorded
        };
        Ok(())
    }

    /// A histogram has no single value.
    pub(crate) fn read(&self, id: u32) -> Result<u64, Status> {
        match Kind::from_guest(id) {
            Some(Kind::Histogram) | None => Err(Status::BadArgument),
            Some(_) => {
                let name = self.names.get(&id).ok_or(Status::NotFound)?;
                self.by_name(name).ok_or(Status::NotFound)
            }
        }
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<u64> {
        self.values.get(name).copied()
    }

    fn value_mut(&mut self, id: u32) -> Option<&mut u64> {
        self.values.get_mut(self.names.get(&id)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_of_one_name_share_a_value() {
        let mut metrics = Metrics::default();
        let first = metrics.define(0, "hits");
        let second = metrics.define(0, "hits");
        assert_eq!((first, second), (Ok(4), Ok(8)));
        assert_eq!(metrics.increment(4, 2), Ok(()));
        assert_eq!(metrics.increment(8, 3), Ok(()));
        assert_eq!(metrics.read(4), Ok(5));
        assert_eq!(metrics.by_name("hits"), Some(5));
    }

    #[test]
    fn a_counter_only_grows() {
        let mut metrics = Metrics::default();
        assert_eq!(metrics.define(0, "hits"), Ok(4));
        assert_eq!(metrics.increment(4, 0), Err(Status::BadArgument));
        assert_eq!(metrics.increment(4, -1), Err(Status::BadArgument));
        assert_eq!(metrics.record(4, 7), Ok(()));
        assert_eq!(metrics.record(4, 7), Ok(()));
        assert_eq!(metrics.read(4), Ok(14));
    }

    #[test]
    fn kinds_differ() {
        let mut metrics = Metrics::default();
        assert_eq!(metrics.define(1, "level"), Ok(5));
        assert_eq!(metrics.define(2, "time"), Ok(6));
        assert_eq!(metrics.define(3, "nothing"), Err(Status::BadArgument));
        assert_eq!(metrics.increment(5, 9), Ok(()));
        assert_eq!(metrics.increment(5, -4), Ok(()));
        assert_eq!(metrics.read(5), Ok(5));
        assert_eq!(metrics.increment(6, 1), Err(Status::BadArgument));
        assert_eq!(metrics.record(6, 1), Ok(()));
        assert_eq!(metrics.read(6), Err(Status::BadArgument));
        assert_eq!(metrics.increment(4, 1), Err(Status::NotFound));
        assert_eq!(metrics.record(4, 1), Err(Status::NotFound));
    }
}
