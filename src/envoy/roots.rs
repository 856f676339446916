//! The root contexts that live in this VM. The SDK keeps them, and shows none to
//! another.

use std::cell::RefCell;

use crate::config::admission::Plugin;

/// After how many ticks without a stream a root counts as quiet.
const QUIET_TICKS: u32 = 5;

thread_local! {
    static ROOTS: RefCell<Vec<Known>> = const { RefCell::new(Vec::new()) };
}

/// What other roots see of a root.
struct Known {
    id: u32,
    plugin: Plugin,
    /// Whether it has a configuration that can be used.
    is_configured: bool,
    /// Ticks since the last stream.
    quiet_ticks: u32,
}

impl Known {
    fn is_quiet(&self) -> bool {
        self.quiet_ticks >= QUIET_TICKS
    }
}

/// Notes what root `id` is since it was last configured.
pub(super) fn set(id: u32, plugin: Plugin, is_configured: bool) {
    ROOTS.with_borrow_mut(|roots| {
        roots.retain(|root| root.id != id);
        roots.push(Known {
            id,
            plugin,
            is_configured,
            quiet_ticks: 0,
        });
    });
}

/// Forgets root `id`, which ends. Tells whether another root has a usable
/// configuration of the same plugin.
pub(super) fn remove(id: u32, plugin: &Plugin) -> bool {
    ROOTS.with_borrow_mut(|roots| {
        roots.retain(|root| root.id != id);
        let mut others = roots.iter();
        others.any(|other| other.plugin == *plugin && other.is_configured)
    })
}

/// A stream of root `id` begins.
pub(super) fn on_stream(id: u32) {
    ROOTS.with_borrow_mut(|roots| {
        if let Some(root) = roots.iter_mut().find(|root| root.id == id) {
            root.quiet_ticks = 0;
        }
    });
}

/// A tick of root `id`. Tells whether its listener is drained: it had no stream
/// for a while, and another root of the same plugin is later or busy.
pub(super) fn on_tick(id: u32) -> bool {
    ROOTS.with_borrow_mut(|roots| {
        let is_drained = roots.iter().any(|root| {
            let is_successor = |other: &Known| {
                let is_other = other.id != id && other.plugin == root.plugin;
                is_other && (other.id > id || !other.is_quiet())
            };
            root.id == id && root.is_quiet() && roots.iter().any(is_successor)
        });
        if let Some(root) = roots.iter_mut().find(|root| root.id == id) {
            root.quiet_ticks = root.quiet_ticks.saturating_add(1);
        }
        is_drained
    })
}
