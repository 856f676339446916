//! Problems that the statistics show.

use metadata_exchange::config::Protocol;
use serde_json::Value;

use super::facts::{Facts, Placed};
use super::filter::Filter;
use super::finding::{Code, Finding};
use super::statistics::Stats;

/// The prefix of the filter's counters, whatever the filter is named.
const COUNTERS: &str = "wasmcustom.metadata_exchange.";

pub(super) fn examine(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    let Some(stats) = &facts.stats else {
        return;
    };
    findings.extend(stats.of_counters());
    let failures = stats.get(FETCH_FAILURES);
    if failures > 0 {
        findings.push(Finding::warning(
            Code::VmFailed,
            FETCH_FAILURES,
            format!("Envoy failed to fetch a Wasm module {failures} times since its start"),
            "check the URL and the cluster in vm_config.code.remote, and its sha256",
        ));
    }
    findings.extend(stats.of_header_limits());
    let mut is_configured = false;
    for placed in facts.ours() {
        findings.extend(stats.refused_configurations(&placed));
        findings.extend(stats.dropped(placed.filter));
        findings.extend(stats.reloads(placed.filter.name, placed.plugin.name));
        is_configured |= placed.plugin.configuration.is_ok();
    }
    if !is_configured {
        return;
    }
    // The counters exist once the first VM has started.
    if !stats.0.iter().any(|(name, _)| name.starts_with(COUNTERS)) {
        findings.push(Finding::error(
            Code::VmFailed,
            "wasmcustom",
            "the filter is configured, but its counters do not exist: its module was not loaded, \
             did not start, or is a different one",
            "look for wasm in Envoy's log, and check vm_config.code; or stats_config excludes \
             these statistics",
        ));
    }
    if let Some(later) = &facts.later {
        findings.extend(stats.standstill(later));
    }
}

/// Whether to read `/stats?format=json` again after [`super::LATER`].
#[must_use]
pub fn has_to_wait(stats: &Value) -> bool {
    Stats::read(stats).is_ok_and(|stats| stats.ticks().is_some())
}

impl Stats<'_> {
    fn of_counters(&self) -> Vec<Finding> {
        let finding = |(place, count): (&str, u64)| {
            let name = place.strip_prefix(COUNTERS)?;
            if let Some(reason) = name.strip_prefix("refused_") {
                return Some(Finding::warning(
                    Code::PeersRefused,
                    place,
                    format!("{count} peers were refused: {reason}"),
                    remedy_of_refusal(reason),
                ));
            }
            of_counter(name, place, count)
        };
        self.counted().filter_map(finding).collect()
    }

    /// Requests and responses that were rejected for their headers, which include the filter's.
    fn of_header_limits(&self) -> Vec<Finding> {
        let finding = |(name, count): (&str, u64)| {
            let reason = if name.ends_with("http2.header_list_size_too_large") {
                "header lists exceeded what the peer of this Envoy allows, and the streams were \
                 reset"
            } else if name.ends_with("http2.header_overflow") {
                "streams were reset because their headers exceeded this Envoy's limits"
            } else if name.ends_with(".upstream_rq_431") && !name.contains(".internal.") {
                "upstream answered requests with 431: their headers were too large for it"
            } else {
                return None;
            };
            Some(Finding::warning(
                Code::HeaderLimit,
                name,
                format!("{count} {reason}"),
                "send less: \"share\": \"minimal\", or lower max_sent_bytes; or raise the limits \
                 along the path: max_request_headers_kb and max_headers_count",
            ))
        };
        self.counted().filter_map(finding).collect()
    }

    /// Envoy's dump shows the last configuration, refused or not. If that one is valid, the count
    /// is of earlier ones, or of other resources.
    fn refused_configurations(&self, placed: &Placed<'_, '_>) -> Option<Finding> {
        let Placed { filter, plugin, .. } = placed;
        if !filter.is_discovered || plugin.configuration.is_err() {
            return None;
        }
        let kind = match placed.protocol {
            Protocol::Http => "http_filter",
            Protocol::Tcp => "network_filter",
        };
        let refused = self.get(&format!(
            "{DISCOVERY}{kind}.{}.update_rejected",
            filter.name
        ));
        (refused > 0).then(|| {
            Finding::warning(
                Code::ConfigurationRefused,
                filter.name,
                format!(
                    "Envoy has refused a discovered configuration {refused} times since its start; \
                     the filter accepts the last one"
                ),
                "nothing if it was corrected; otherwise Envoy's log says why, for example that the \
                 module cannot be read",
            )
        })
    }

    /// Whether Envoy drops the statistics that [`Self::refused_configurations`] reads.
    fn dropped(&self, filter: &Filter<'_>) -> Option<Finding> {
        let is_kept = self.0.iter().any(|(name, _)| name.starts_with(DISCOVERY));
        (filter.is_discovered && !is_kept).then(|| {
            Finding::info(
                Code::StatsDropped,
                filter.name,
                "Envoy keeps no extension_config_discovery statistics, so refused configurations \
                 of the filter do not show: Istio's stats matcher drops them",
                "add extension_config_discovery to inclusionPrefixes of proxyStatsMatcher, in the \
                 mesh configuration or the annotation proxy.istio.io/config; Envoy's log shows \
                 refusals as well",
            )
        })
    }

    /// The counter of seconds that the filter's VMs have run since their first request. `None`
    /// before the first request, and for releases without this counter.
    fn ticks(&self) -> Option<u64> {
        let ticks = format!("{COUNTERS}ticks");
        Some(self.get(&ticks)).filter(|ticks| *ticks > 0)
    }

    fn standstill(&self, later: &Self) -> Option<Finding> {
        let ticks = self.ticks()?;
        (later.ticks() == Some(ticks)).then(|| {
            let seconds = super::LATER.as_secs();
            Finding::error(
                Code::VmFailed,
                "wasmcustom",
                format!(
                    "the filter has served requests, but none of its VMs has ticked for {seconds} \
                     s: all have died, or new ones replaced them and have had no request yet"
                ),
                "look for wasm in Envoy's log, restart the proxy, and report the crash as \
                 SECURITY.md describes",
            )
        })
    }

    /// Envoy counts reloads; with other policies it does not count a VM that died.
    fn reloads(&self, filter: &str, plugin: &str) -> Option<Finding> {
        let count = |name: &str| self.get(&format!("wasm.{plugin}.vm_reload_{name}"));
        let (good, bad) = (count("success"), count("failure"));
        (good + bad > 0).then(|| {
            Finding::error(
                Code::VmFailed,
                filter,
                format!(
                    "the VM died; it was reloaded {good} times, and reloading failed {bad} times"
                ),
                "look for wasm in Envoy's log; prefer the failure_policy FAIL_OPEN, and report the \
                 crash as SECURITY.md describes",
            )
        })
    }
}

/// The prefix of Envoy's counters for discovered filters.
const DISCOVERY: &str = "extension_config_discovery.";

/// Envoy's counter of modules that it could not fetch.
const FETCH_FAILURES: &str = "wasm.remote_load_fetch_failures";

/// Findings from counters other than `refused_*`.
fn of_counter(name: &str, place: &str, count: u64) -> Option<Finding> {
    let finding = match name {
        "host_error" => Finding::warning(
            Code::HostErrors,
            place,
            format!("{count} host calls of the filter failed"),
            "look for metadata_exchange in Envoy's log, and report it with Envoy's version",
        ),
        "configuration_errors" => Finding::warning(
            Code::ConfigurationRefused,
            place,
            format!(
                "the filter has refused a configuration {count} times since Envoy's start: after a \
                 refused update, the previous one stays in force"
            ),
            "nothing if it was corrected; otherwise Envoy's log says what is wrong, and `mxctl \
             check-config` checks a configuration before a rollout",
        ),
        "too_large_to_send" => Finding::warning(
            Code::HeaderLimit,
            place,
            format!(
                "{count} requests or responses had no room for the filter's headers within the \
                 header limits: their peers stay unknown"
            ),
            "send fewer or shorter headers; or raise the limits of the proxies on the way, and \
             then max_request_headers_kb, max_request_headers_count and those of responses in the \
             plugin's configuration",
        ),
        "frame_timed_out" => Finding::warning(
            Code::FrameTimedOut,
            place,
            format!(
                "the first bytes of {count} connections looked like the beginning of a frame for 5 \
                 seconds, and were then passed on as they are: their callers are unknown"
            ),
            "find out who sends them: a proxy that stops within its frame, or a client whose \
             protocol begins with the same bytes (`=#`) and then waits for the server",
        ),
        "configuration_idle" => Finding::error(
            Code::FilterIdle,
            place,
            "the filter is idle because its first configuration was invalid, or its \"protocol\" is \
             not that of its filter chain: requests are served and bytes pass, and no peer is sent, \
             stored or answered",
            "correct the configuration, which takes effect at once; Envoy's log says what is \
             wrong, and `mxctl check-config` checks it before a rollout",
        ),
        _ => return None,
    };
    Some(finding)
}

fn remedy_of_refusal(reason: &str) -> &'static str {
    match reason {
        "trust_none" | "trust_mtls" | "trust_spiffe" => {
            "to believe these peers, give them certificates, or configure trust and upstream_trust \
             as SECURITY.md describes"
        }
        "too_long" => {
            "raise max_received_bytes, or share less at the peers, with share or max_sent_bytes"
        }
        "too_many_labels" => "raise max_labels, or share fewer labels at the peers",
        "id_too_long" => "raise max_id_bytes, or shorten the node ids of the peers",
        "control_character" | "utf8" => {
            "correct the node metadata of the peers, or find out who forges them"
        }
        _ => "find out who sends these headers: they do not come from a metadata exchange",
    }
}
