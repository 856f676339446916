//! Whether an invalid configuration is refused or leaves the filter idle.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use metadata_exchange::config::admission::{Plugin, SharedData, Verdict};
use metadata_exchange::host::{HostError, HostResult};

const SECOND: u64 = 1_000_000_000;
const CAS_MISMATCH: u32 = 8;

/// The shared data of one `vm_id`, and the clock.
#[derive(Default)]
struct Space {
    entries: RefCell<HashMap<String, (Vec<u8>, u32)>>,
    writes: Cell<u32>,
    now: Cell<u64>,
    fails: Cell<Option<&'static str>>,
    /// Written by another VM just before the next write.
    ahead: RefCell<Option<Vec<u8>>>,
}

impl Space {
    fn put(&self, key: &str, value: &[u8]) {
        self.writes.set(self.writes.get() + 1);
        let entry = (value.to_vec(), self.writes.get());
        self.entries.borrow_mut().insert(key.to_owned(), entry);
    }

    fn pass(&self, seconds: u64) {
        self.now.set(self.now.get() + seconds * SECOND);
    }

    fn check(&self, call: &str) -> HostResult<()> {
        match self.fails.get() {
            Some(failing) if failing == call => Err(HostError(10)),
            _ => Ok(()),
        }
    }
}

impl SharedData for Space {
    fn read(&self, key: &str) -> HostResult<Option<(Vec<u8>, u32)>> {
        self.check("read")?;
        Ok(self.entries.borrow().get(key).cloned())
    }

    fn write(&self, key: &str, value: &[u8], number: u32) -> HostResult<()> {
        self.check("write")?;
        if let Some(ahead) = self.ahead.take() {
            self.put(key, &ahead);
        }
        let known = self.entries.borrow().get(key).map(|(_, known)| *known);
        if number != 0 && known.is_some_and(|known| known != number) {
            return Err(HostError(CAS_MISMATCH));
        }
        self.put(key, value);
        Ok(())
    }

    fn now(&self) -> HostResult<u64> {
        self.check("now")?;
        Ok(self.now.get())
    }
}

fn plugin() -> Plugin {
    Plugin::new("exchange", "root")
}

#[test]
fn a_first_configuration_leaves_the_filter_idle() {
    let space = Space::default();
    for text in ["bad", "another", "bad"] {
        assert_eq!(plugin().admit(&space, text.as_bytes()), Verdict::Idle);
    }
}

#[test]
fn an_update_is_refused() {
    let space = Space::default();
    plugin().mark_in_force(&space).unwrap();
    for text in ["bad", "another", "bad"] {
        assert_eq!(plugin().admit(&space, text.as_bytes()), Verdict::Refused);
    }
}

#[test]
fn an_idle_plugin_stays_idle() {
    let space = Space::default();
    assert_eq!(plugin().admit(&space, b"bad"), Verdict::Idle);
    plugin().mark_in_force(&space).unwrap();
    assert_eq!(plugin().admit(&space, b"another"), Verdict::Refused);
    assert_eq!(plugin().admit(&space, b"bad"), Verdict::Idle);
    assert_eq!(plugin().admit(&space, b"another"), Verdict::Refused);
}

#[test]
fn a_mark_expires_unless_it_is_renewed() {
    let space = Space::default();
    plugin().mark_in_force(&space).unwrap();
    space.pass(4);
    assert_eq!(plugin().admit(&space, b"bad"), Verdict::Refused);
    plugin().mark_in_force(&space).unwrap();
    space.pass(4);
    assert_eq!(plugin().admit(&space, b"bad"), Verdict::Refused);
    space.pass(1);
    assert_eq!(plugin().admit(&space, b"bad"), Verdict::Idle);
}

/// Created again right after its end, also if another VM has not ended yet.
#[test]
fn a_withdrawn_mark_has_no_effect() {
    let space = Space::default();
    plugin().mark_in_force(&space).unwrap();
    plugin().withdraw(&space).unwrap();
    assert_eq!(plugin().admit(&space, b"bad"), Verdict::Idle);
    plugin().mark_in_force(&space).unwrap();
    assert_eq!(plugin().admit(&space, b"another"), Verdict::Refused);
}

/// Another worker may read its clock slightly before the time of the mark.
#[test]
fn a_mark_of_the_future_is_in_force() {
    let space = Space::default();
    space.pass(10);
    plugin().mark_in_force(&space).unwrap();
    space.now.set(9 * SECOND);
    assert_eq!(plugin().admit(&space, b"bad"), Verdict::Refused);
}

#[test]
fn plugins_are_distinguished_by_name_and_root_id() {
    let space = Space::default();
    plugin().mark_in_force(&space).unwrap();
    let others = [
        ("another", "root"),
        ("exchange", "another"),
        ("", ""),
        ("exchangeroot", ""),
        ("exchange\0root", "in_force"),
    ];
    for (name, root_id) in others {
        let text = format!("bad {name} {root_id}");
        let other = Plugin::new(name, root_id);
        assert_eq!(other.admit(&space, text.as_bytes()), Verdict::Idle);
    }
    assert_eq!(plugin().admit(&space, b"bad"), Verdict::Refused);
    for key in space.entries.borrow().keys() {
        assert!(key.starts_with("metadata_exchange\0"), "{key:?}");
    }
}

/// If the idle texts are full, nothing is refused any more: a text that was
/// accepted as idle and forgotten would later be refused by the serving VMs,
/// which ends them.
#[test]
fn the_texts_are_bounded() {
    let space = Space::default();
    for number in 0..1000 {
        let text = format!("bad {number}");
        assert_eq!(plugin().admit(&space, text.as_bytes()), Verdict::Idle);
    }
    plugin().mark_in_force(&space).unwrap();
    for number in [0, 63, 64, 999, 1000] {
        let text = format!("bad {number}");
        assert_eq!(plugin().admit(&space, text.as_bytes()), Verdict::Idle);
    }
    let sizes = space.entries.borrow();
    assert!(sizes.values().all(|(value, _)| value.len() <= 512));
}

#[test]
fn a_text_is_kept_where_another_vm_writes_at_the_same_time() {
    for first in [&[][..], b"earlier"] {
        let space = Space::default();
        if !first.is_empty() {
            assert_eq!(plugin().admit(&space, first), Verdict::Idle);
        }
        *space.ahead.borrow_mut() = Some(vec![7; 8]);
        assert_eq!(plugin().admit(&space, b"bad"), Verdict::Idle);
        plugin().mark_in_force(&space).unwrap();
        assert_eq!(plugin().admit(&space, b"bad"), Verdict::Idle);
    }
}

#[test]
fn a_host_that_fails_refuses_nothing() {
    for failing in ["read", "write", "now"] {
        let space = Space::default();
        if failing != "write" {
            plugin().mark_in_force(&space).unwrap();
        }
        space.fails.set(Some(failing));
        assert_eq!(plugin().admit(&space, b"bad"), Verdict::Idle, "{failing}");
    }
}

#[test]
fn foreign_bytes_under_a_key_refuse_nothing() {
    for bytes in [&[][..], b"short", b"much longer than a mark"] {
        let space = Space::default();
        plugin().mark_in_force(&space).unwrap();
        let keys: Vec<String> = space.entries.borrow().keys().cloned().collect();
        for key in keys {
            space.put(&key, bytes);
        }
        assert_eq!(plugin().admit(&space, b"bad"), Verdict::Idle);
    }
}
