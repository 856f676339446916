//! What the statistics tell.

use serde_json::Value;

use super::facts::Facts;
use super::filter::HttpFilter;
use super::finding::{Code, Finding};
use super::statistics::Stats;

/// Under which the filter counts, whatever its names.
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
            format!("{failures} times since its start Envoy could not fetch a Wasm module"),
            "check the URL and the cluster in vm_config.code.remote, and its sha256",
        ));
    }
    findings.extend(stats.of_header_limits());
    let mut is_configured = false;
    for (_, filter, plugin) in facts.ours() {
        findings.extend(stats.refused_configurations(filter));
        findings.extend(stats.dropped(filter));
        findings.extend(stats.reloads(filter.name, plugin.name));
        is_configured |= plugin.configuration.is_ok();
    }
    if !is_configured {
        return;
    }
    // They are there from the start of the first VM on.
    if !stats.0.iter().any(|(name, _)| name.starts_with(COUNTERS)) {
        findings.push(Finding::error(
            Code::VmFailed,
            "wasmcustom",
            "the filter is configured, but its counters are not there: its module was not loaded, \
             did not start, or is another one",
            "look for wasm in Envoy's log, and check vm_config.code; or Envoy is told to keep no \
             such statistics (stats_config)",
        ));
    }
    if let Some(later) = &facts.later {
        findings.extend(stats.standstill(later));
    }
}

/// Whether these `/stats?format=json` are worth a look [`super::LATER`].
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
                    format!("{count} times a peer was refused: {reason}"),
                    remedy_of_refusal(reason),
                ));
            }
            of_counter(name, place, count)
        };
        self.counted().filter_map(finding).collect()
    }

    /// Requests and answers that were refused for their headers, ours among them.
    fn of_header_limits(&self) -> Vec<Finding> {
        let finding = |(name, count): (&str, u64)| {
            let reason = if name.ends_with("http2.header_list_size_too_large") {
                "header lists were larger than the peer of this Envoy allows, and the streams were \
                 reset"
            } else if name.ends_with("http2.header_overflow") {
                "streams were reset, for their headers passed this Envoy's limits"
            } else if name.ends_with(".upstream_rq_431") && !name.contains(".internal.") {
                "requests were answered with 431 by upstream: their headers were too large for it"
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

    /// Envoy's dump shows the last configuration, refused or not. Where that one
    /// is valid the count is of those before, or of what else is refused.
    fn refused_configurations(&self, filter: &HttpFilter<'_>) -> Option<Finding> {
        if !filter.is_discovered || filter.ours()?.configuration.is_err() {
            return None;
        }
        let refused = self.get(&format!("{}{}.update_rejected", DISCOVERY, filter.name));
        (refused > 0).then(|| {
            Finding::warning(
                Code::ConfigurationRefused,
                filter.name,
                format!(
                    "{refused} times since its start Envoy has refused what it discovered; the \
                     filter does not refuse the last configuration"
                ),
                "if that is corrected, nothing; else Envoy's log says why, as a module that cannot \
                 be read",
            )
        })
    }

    /// Whether Envoy is told not to keep what [`Self::refused_configurations`] reads.
    fn dropped(&self, filter: &HttpFilter<'_>) -> Option<Finding> {
        let is_kept = self.0.iter().any(|(name, _)| name.starts_with(DISCOVERY));
        (filter.is_discovered && !is_kept).then(|| {
            Finding::info(
                Code::StatsDropped,
                filter.name,
                "Envoy keeps no extension_config_discovery statistics, so that nobody can tell \
                 whether a configuration of the filter was refused: Istio's stats matcher drops them",
                "add extension_config_discovery to inclusionPrefixes of proxyStatsMatcher, in the \
                 mesh configuration or the annotation proxy.istio.io/config; Envoy's log has the \
                 refusals, too",
            )
        })
    }

    /// The seconds that those VMs of the filter have lived that have served
    /// requests. None before, and of a release without such a count.
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
                    "the filter has served, but no VM of it has ticked for {seconds} s: all have \
                     died, or others have taken their places and had no request yet"
                ),
                "look for wasm in Envoy's log, restart the proxy, and report what kills the \
                 filter as SECURITY.md says",
            )
        })
    }

    /// Envoy counts what it reloads; with other policies a VM that died is not
    /// counted.
    fn reloads(&self, filter: &str, plugin: &str) -> Option<Finding> {
        let count = |name: &str| self.get(&format!("wasm.{plugin}.vm_reload_{name}"));
        let (good, bad) = (count("success"), count("failure"));
        (good + bad > 0).then(|| {
            Finding::error(
                Code::VmFailed,
                filter,
                format!(
                    "the VM died; it was loaded again {good} times, and {bad} times that failed"
                ),
                "look for wasm in Envoy's log; prefer the failure_policy FAIL_OPEN, and report \
                 what kills the filter as SECURITY.md says",
            )
        })
    }
}

/// Under which Envoy counts what becomes of discovered filters.
const DISCOVERY: &str = "extension_config_discovery.http_filter.";

/// Envoy counts what it could not fetch of modules with a URL.
const FETCH_FAILURES: &str = "wasm.remote_load_fetch_failures";

/// What counters other than `refused_*` tell.
fn of_counter(name: &str, place: &str, count: u64) -> Option<Finding> {
    let finding = match name {
        "host_error" => Finding::warning(
            Code::HostErrors,
            place,
            format!("{count} times Envoy did not answer the filter as it should"),
            "look for metadata_exchange in Envoy's log, and report it with Envoy's version",
        ),
        "configuration_errors" => Finding::warning(
            Code::ConfigurationRefused,
            place,
            format!(
                "{count} times since Envoy's start the filter refused a configuration: of an \
                 update, the one before stays in force"
            ),
            "if that is corrected, nothing; else Envoy's log says what is wrong, and \
             `mxctl check-config` checks a configuration before a rollout",
        ),
        "too_large_to_send" => Finding::warning(
            Code::HeaderLimit,
            place,
            format!(
                "{count} requests or responses had no room for the filter's headers below the \
                 header limits: their peers stay unknown"
            ),
            "send fewer or shorter headers; or raise the limits of the proxies on the way, and \
             then max_request_headers_kb, max_request_headers_count and those of responses in the \
             plugin's configuration",
        ),
        "configuration_idle" => Finding::error(
            Code::FilterIdle,
            place,
            "the filter is idle, for its first configuration was refused: requests are served, and \
             no peer is sent, stored or answered",
            "correct the configuration, which then works at once; Envoy's log says what is wrong, \
             and `mxctl check-config` checks it before a rollout",
        ),
        _ => return None,
    };
    Some(finding)
}

fn remedy_of_refusal(reason: &str) -> &'static str {
    match reason {
        "trust_none" | "trust_mtls" | "trust_spiffe" => {
            "if these peers are to be believed, give them certificates, or configure trust and \
             upstream_trust by SECURITY.md"
        }
        "too_long" => {
            "raise max_received_bytes, or let the peers share less: share, max_sent_bytes"
        }
        "too_many_labels" => "raise max_labels, or let the peers share fewer labels",
        "id_too_long" => "raise max_id_bytes, or shorten the node ids of the peers",
        "control_character" | "utf8" => {
            "correct the node metadata of the peers, or find who forges them"
        }
        _ => "find who sends these headers: they are not those of a metadata exchange",
    }
}
