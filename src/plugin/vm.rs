//! The contexts that live in this VM, by the ids that the host gave them.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::{HttpStream, Root};
use crate::exchange::Stream;

/// Roots and streams. Two plugins in one VM have a root each; a configuration
/// that is replaced has its root until its last stream ends.
pub(super) struct Vm {
    roots: ById<Root>,
    streams: ById<HttpStream>,
}

thread_local! {
    static VM: RefCell<Vm> = const {
        RefCell::new(Vm {
            roots: ById::EMPTY,
            streams: ById::EMPTY,
        })
    };
}

/// Calls `work` with the VM. The host does not enter the VM twice at once; if it
/// did, the inner call would do nothing.
pub(super) fn with<T: Default>(work: impl FnOnce(&mut Vm) -> T) -> T {
    VM.with(|vm| vm.try_borrow_mut().map(|mut vm| work(&mut vm)))
        .unwrap_or_default()
}

impl Vm {
    /// A root context has no parent; the parent of a stream is its root.
    pub(super) fn on_context_create(&mut self, id: u32, parent: u32) {
        if parent == 0 {
            self.roots.insert(id, Root::default());
            return;
        }
        let root = self.roots.get_mut(parent);
        let stream = HttpStream {
            exchange: root.and_then(|root| root.exchange.clone()),
            stream: Stream::default(),
        };
        self.streams.insert(id, stream);
    }

    pub(super) fn on_delete(&mut self, id: u32) {
        if self.streams.remove(id).is_none()
            && let Some(root) = self.roots.remove(id)
        {
            root.on_delete();
        }
    }

    pub(super) fn root(&mut self, id: u32) -> Option<&mut Root> {
        self.roots.get_mut(id)
    }

    pub(super) fn stream(&mut self, id: u32) -> Option<&mut HttpStream> {
        self.streams.get_mut(id)
    }
}

/// Contexts by id. The host counts ids up, so that those that live at the same
/// time mostly have a place of their own; the few others stand aside.
struct ById<T> {
    places: Vec<Option<(u32, T)>>,
    aside: BTreeMap<u32, T>,
}

impl<T> ById<T> {
    const PLACES: usize = 256;

    const EMPTY: Self = Self {
        places: Vec::new(),
        aside: BTreeMap::new(),
    };

    fn insert(&mut self, id: u32, context: T) {
        if self.places.is_empty() {
            self.places.resize_with(Self::PLACES, || None);
        }
        match self.place(id) {
            Some(place @ None) => *place = Some((id, context)),
            _ => {
                self.aside.insert(id, context);
            }
        }
    }

    fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        match self.places.get_mut(id as usize % Self::PLACES) {
            Some(Some((at, context))) if *at == id => Some(context),
            _ => self.aside.get_mut(&id),
        }
    }

    fn remove(&mut self, id: u32) -> Option<T> {
        match self.place(id) {
            Some(place) if place.as_ref().is_some_and(|(at, _)| *at == id) => {
                place.take().map(|(_, context)| context)
            }
            _ => self.aside.remove(&id),
        }
    }

    fn place(&mut self, id: u32) -> Option<&mut Option<(u32, T)>> {
        self.places.get_mut(id as usize % Self::PLACES)
    }
}
