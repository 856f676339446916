//! The root contexts in this VM. The SDK owns them, and gives none access to
//! another.

use std::cell::RefCell;

use crate::config::admission::Plugin;

/// After how many ticks without a stream a root counts as quiet.
const QUIET_TICKS: u32 = 5;

thread_local! {
    static ROOTS: RefCell<Vec<Known>> = const { RefCell::new(Vec::new()) };
}

/// The state of a root that other roots can see.
struct Known {
    id: u32,
    plugin: Plugin,
    /// Whether it has a valid configuration.
    is_configured: bool,
    /// Ticks since the last stream.
    quiet_ticks: u32,
}

impl Known {
    fn is_quiet(&self) -> bool {
        self.quiet_ticks >= QUIET_TICKS
    }
}

/// Records the state of root `id` after it was configured.
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

/// Removes root `id`, which ends. Returns whether another root has a valid
/// configuration of the same plugin.
pub(super) fn remove(id: u32, plugin: &Plugin) -> bool {
    ROOTS.with_borrow_mut(|roots| {
        roots.retain(|root| root.id != id);
        let mut others = roots.iter();
        others.any(|other| other.plugin == *plugin && other.is_configured)
    })
}

/// Records a new stream of root `id`.
pub(super) fn on_stream(id: u32) {
    ROOTS.with_borrow_mut(|roots| {
        if let Some(root) = roots.iter_mut().find(|root| root.id == id) {
            root.quiet_ticks = 0;
        }
    });
}

/// Records a tick of root `id`. Returns whether its listener is drained: it had
/// no stream for a while, and another root of the same plugin is newer or busy.
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
