//! Data that VMs share, as Envoy keeps it for each `vm_id`.

use crate::Status;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// The data that VMs with the same `vm_id` share. Clones refer to the same data.
#[derive(Clone, Debug, Default)]
pub struct SharedData(Rc<RefCell<Space>>);

#[derive(Debug, Default)]
struct Space {
    entries: BTreeMap<Vec<u8>, (Vec<u8>, u32)>,
    last_cas: u32,
}

impl SharedData {
    /// The keys, in order.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let space = self.0.borrow();
        let keys = space.entries.keys();
        keys.map(|key| String::from_utf8_lossy(key).into_owned())
            .collect()
    }

    /// The value under a key, with the number of the write that set it.
    pub(crate) fn get(&self, key: &[u8]) -> Result<(Vec<u8>, u32), Status> {
        let space = self.0.borrow();
        space.entries.get(key).cloned().ok_or(Status::NotFound)
    }

    /// Fails if the last write of the entry is not `cas`; 0 writes unconditionally. A new key can always be written.
    pub(crate) fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), Status> {
        let mut space = self.0.borrow_mut();
        let known = space.entries.get(key).map(|(_, known)| *known);
        if cas != 0 && known.is_some_and(|known| known != cas) {
            return Err(Status::CasMismatch);
        }
        space.last_cas += 1;
        let entry = (value.to_vec(), space.last_cas);
        space.entries.insert(key.to_vec(), entry);
        Ok(())
    }
}
