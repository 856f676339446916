//! Converts Envoy's messages to [`Entry`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, RequestMethod};
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, AccessLogType, HttpAccessLogEntry, ResponseFlags, TcpAccessLogEntry,
};
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use envoy_types::pb::google::protobuf::{Duration, Timestamp};

use crate::entry::{Entry, Protocol, VERSION};
use crate::reporter::Reporter;
use crate::state::state_of;

impl Entry {
    fn new(reporter: Arc<Reporter>, protocol: Protocol, common: Option<AccessLogCommon>) -> Self {
        let bare = common.is_none();
        let common = common.unwrap_or_default();
        let state = common.filter_state_objects.iter();
        Self {
            version: VERSION,
            reporter,
            protocol,
            intermediate: is_intermediate(&common),
            startless: common.start_time.is_none(),
            start: common.start_time.as_ref().and_then(rfc3339),
            duration_us: common
                .time_to_last_downstream_tx_byte
                .or(common.duration)
                .and_then(|duration| microseconds(&duration)),
            method: String::new(),
            authority: String::new(),
            path: String::new(),
            request_headers: BTreeMap::new(),
            status: 0,
            details: String::new(),
            flags: common.response_flags.as_ref().map_or_else(Vec::new, flags),
            downstream_address: address(common.downstream_remote_address),
            upstream_address: address(common.upstream_remote_address),
            stream_id: String::new(),
            received_bytes: 0,
            sent_bytes: 0,
            bare,
            state: state
                .map(|(key, any)| (key.clone(), state_of(key, any)))
                .collect(),
            upstream_cluster: common.upstream_cluster,
        }
    }

    fn of_http(reporter: Arc<Reporter>, entry: HttpAccessLogEntry) -> Self {
        let request = entry.request.unwrap_or_default();
        let response = entry.response.unwrap_or_default();
        let method = match request.request_method() {
            RequestMethod::MethodUnspecified => "",
            method => method.as_str_name(),
        };
        Self {
            method: method.to_owned(),
            authority: request.authority,
            path: request.path,
            request_headers: request.request_headers.into_iter().collect(),
            status: response.response_code.map_or(0, |code| code.value),
            details: response.response_code_details,
            ..Self::new(reporter, Protocol::Http, entry.common_properties)
        }
    }

    fn of_tcp(reporter: Arc<Reporter>, entry: TcpAccessLogEntry) -> Self {
        let common = entry.common_properties;
        let stream_id = common.as_ref().map(|common| common.stream_id.clone());
        let connection = entry.connection_properties.unwrap_or_default();
        Self {
            stream_id: stream_id.unwrap_or_default(),
            received_bytes: connection.received_bytes,
            sent_bytes: connection.sent_bytes,
            ..Self::new(reporter, Protocol::Tcp, common)
        }
    }
}

/// The entries of a message.
#[must_use]
pub fn entries(reporter: &Arc<Reporter>, entries: LogEntries) -> Vec<Entry> {
    match entries {
        LogEntries::HttpLogs(logs) => logs
            .log_entry
            .into_iter()
            .map(|entry| Entry::of_http(Arc::clone(reporter), entry))
            .collect(),
        LogEntries::TcpLogs(logs) => logs
            .log_entry
            .into_iter()
            .map(|entry| Entry::of_tcp(Arc::clone(reporter), entry))
            .collect(),
    }
}

fn is_intermediate(common: &AccessLogCommon) -> bool {
    // Older Envoys set a field that is deprecated now.
    #[allow(deprecated)]
    let is_intermediate = common.intermediate_log_entry;
    is_intermediate
        || !matches!(
            common.access_log_type(),
            AccessLogType::NotSet
                | AccessLogType::TcpConnectionEnd
                | AccessLogType::DownstreamEnd
                | AccessLogType::UpstreamEnd
        )
}

fn rfc3339(time: &Timestamp) -> Option<String> {
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?;
    time.format(&Rfc3339).ok()
}

fn microseconds(duration: &Duration) -> Option<u64> {
    let seconds = u64::try_from(duration.seconds).ok()?;
    let nanos = u64::try_from(duration.nanos).ok()?;
    seconds.checked_mul(1_000_000)?.checked_add(nanos / 1000)
}

fn address(address: Option<Address>) -> String {
    match address.and_then(|address| address.address) {
        Some(AddressKind::SocketAddress(socket)) => match socket.port_specifier {
            Some(PortSpecifier::PortValue(port)) => format!("{}:{port}", socket.address),
            _ => socket.address,
        },
        Some(AddressKind::Pipe(pipe)) => pipe.path,
        Some(AddressKind::EnvoyInternalAddress(_)) | None => String::new(),
    }
}

/// Response flags by the short names of [`flags`], separated by commas.
pub(crate) fn response_flags(names: &str) -> ResponseFlags {
    let mut flags = ResponseFlags::default();
    for name in names.split(',') {
        let flag = match name {
            "LH" => &mut flags.failed_local_healthcheck,
            "UH" => &mut flags.no_healthy_upstream,
            "UT" => &mut flags.upstream_request_timeout,
            "LR" => &mut flags.local_reset,
            "UR" => &mut flags.upstream_remote_reset,
            "UF" => &mut flags.upstream_connection_failure,
            "UC" => &mut flags.upstream_connection_termination,
            "UO" => &mut flags.upstream_overflow,
            "NR" => &mut flags.no_route_found,
            "DI" => &mut flags.delay_injected,
            "FI" => &mut flags.fault_injected,
            "RL" => &mut flags.rate_limited,
            "RLSE" => &mut flags.rate_limit_service_error,
            "DC" => &mut flags.downstream_connection_termination,
            "URX" => &mut flags.upstream_retry_limit_exceeded,
            "SI" => &mut flags.stream_idle_timeout,
            "IH" => &mut flags.invalid_envoy_request_headers,
            "DPE" => &mut flags.downstream_protocol_error,
            "UMSDR" => &mut flags.upstream_max_stream_duration_reached,
            "RFCF" => &mut flags.response_from_cache_filter,
            "NFCF" => &mut flags.no_filter_config_found,
            "DT" => &mut flags.duration_timeout,
            "UPE" => &mut flags.upstream_protocol_error,
            "NC" => &mut flags.no_cluster_found,
            "OM" => &mut flags.overload_manager,
            "DF" => &mut flags.dns_resolution_failure,
            "DR" => &mut flags.downstream_remote_reset,
            // Of `UAEX` the log names no details.
            _ => continue,
        };
        *flag = true;
    }
    flags
}

/// The short names that Envoy's text logs have for response flags.
fn flags(flags: &ResponseFlags) -> Vec<Cow<'static, str>> {
    let flags = [
        (flags.failed_local_healthcheck, "LH"),
        (flags.no_healthy_upstream, "UH"),
        (flags.upstream_request_timeout, "UT"),
        (flags.local_reset, "LR"),
        (flags.upstream_remote_reset, "UR"),
        (flags.upstream_connection_failure, "UF"),
        (flags.upstream_connection_termination, "UC"),
        (flags.upstream_overflow, "UO"),
        (flags.no_route_found, "NR"),
        (flags.delay_injected, "DI"),
        (flags.fault_injected, "FI"),
        (flags.rate_limited, "RL"),
        (flags.unauthorized_details.is_some(), "UAEX"),
        (flags.rate_limit_service_error, "RLSE"),
        (flags.downstream_connection_termination, "DC"),
        (flags.upstream_retry_limit_exceeded, "URX"),
        (flags.stream_idle_timeout, "SI"),
        (flags.invalid_envoy_request_headers, "IH"),
        (flags.downstream_protocol_error, "DPE"),
        (flags.upstream_max_stream_duration_reached, "UMSDR"),
        (flags.response_from_cache_filter, "RFCF"),
        (flags.no_filter_config_found, "NFCF"),
        (flags.duration_timeout, "DT"),
        (flags.upstream_protocol_error, "UPE"),
        (flags.no_cluster_found, "NC"),
        (flags.overload_manager, "OM"),
        (flags.dns_resolution_failure, "DF"),
        (flags.downstream_remote_reset, "DR"),
    ];
    let set = flags.into_iter().filter(|(is_set, _)| *is_set);
    set.map(|(_, name)| Cow::Borrowed(name)).collect()
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::data::accesslog::v3::ConnectionProperties;
    use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::TcpAccessLogEntries;

    use super::*;

    #[test]
    fn a_connection_has_an_id_bytes_and_one_last_entry() {
        let logged = |kind: AccessLogType| {
            let common = AccessLogCommon {
                stream_id: "one".to_owned(),
                access_log_type: kind.into(),
                ..AccessLogCommon::default()
            };
            let connection = ConnectionProperties {
                received_bytes: 5,
                sent_bytes: 7,
            };
            TcpAccessLogEntry {
                common_properties: Some(common),
                connection_properties: Some(connection),
            }
        };
        let kinds = [
            AccessLogType::TcpConnectionStart,
            AccessLogType::TcpUpstreamConnected,
            AccessLogType::TcpPeriodic,
            AccessLogType::TcpConnectionEnd,
            // Of Envoys that do not know types.
            AccessLogType::NotSet,
        ];
        let log_entry = kinds.into_iter().map(logged).collect();
        let logs = LogEntries::TcpLogs(TcpAccessLogEntries { log_entry });
        let entries = entries(&Arc::default(), logs);
        for entry in &entries {
            assert_eq!(entry.stream_id, "one");
            assert_eq!((entry.received_bytes, entry.sent_bytes), (5, 7));
            let again = Entry::of_line(&entry.to_line()).unwrap();
            assert_eq!(again.to_line(), entry.to_line());
        }
        let intermediate = entries.iter().map(|entry| entry.intermediate);
        assert_eq!(
            intermediate.collect::<Vec<_>>(),
            [true, true, true, false, false]
        );
    }

    #[test]
    fn flags_are_read_by_the_names_that_are_written() {
        let all = "LH,UH,UT,LR,UR,UF,UC,UO,NR,DI,FI,RL,RLSE,DC,URX,SI,IH,DPE,UMSDR,RFCF,NFCF,DT,UPE,NC,OM,DF,DR";
        assert_eq!(flags(&response_flags(all)).join(","), all);
        assert_eq!(flags(&response_flags("-")), Vec::<Cow<'_, str>>::new());
    }
}
