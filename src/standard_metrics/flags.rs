//! Envoy's response flags.

/// The short names of `%RESPONSE_FLAGS%`, by their bit in the attribute `response.flags`
/// (`envoy/stream_info/stream_info.h`, `CoreResponseFlag`).
const NAMES: [&str; 30] = [
    "LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "UAEX", "RLSE", "DC",
    "URX", "SI", "IH", "DPE", "UMSDR", "RFCF", "NFCF", "DT", "UPE", "NC", "OM", "DF", "DO", "DR",
    "UDO",
];

/// The flags as in an access log: separated by commas, `-` if there are none.
pub(super) fn names(flags: u64) -> String {
    let mut set = Vec::new();
    for (bit, name) in (0_u32..).zip(NAMES) {
        if flags.checked_shr(bit).unwrap_or(0) & 1 == 1 {
            set.push(name);
        }
    }
    if set.is_empty() {
        "-".to_owned()
    } else {
        set.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_have_the_names_of_access_logs() {
        for (flags, expected) in [
            (0, "-"),
            (1 << 1, "UH"),
            (1 << 5 | 1 << 15, "UF,URX"),
            (1 << 8, "NR"),
            (1 << 14, "DC"),
            (1 << 24, "NC"),
            (1 << 29, "UDO"),
            (1 << 40, "-"),
        ] {
            assert_eq!(names(flags), expected);
        }
    }
}
