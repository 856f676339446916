//! Cleans up header values pasted from a log, a terminal or a command.

/// A text without the characters that were pasted around and within it.
pub(super) struct Pasted {
    /// The cleaned text.
    pub(super) text: Vec<u8>,
    /// The original offset of each byte.
    offsets: Vec<usize>,
    /// The name of the header, if the text began with one.
    pub(super) name: Option<Name>,
}

/// The name of a header of the exchange.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    Metadata,
    Id,
}

const NAME: &[u8] = b"x-envoy-peer-metadata";
const NAME_OF_ID: &[u8] = b"x-envoy-peer-metadata-id";

/// Quotes, brackets and punctuation that may surround a value, typographic
/// quotes included.
const AROUND: &str =
    "'\"`[](){}<>,;\\ \t\r\n\u{a0}\u{feff}\u{200b}\u{2018}\u{2019}\u{201c}\u{201d}\u{ab}\u{bb}$";

/// White space of wrapped lines, and the characters with which terminals and
/// editors wrap.
const WITHIN: &str = " \t\r\n\\\u{a0}\u{feff}\u{200b}";

/// Removes the header's name, quotes, brackets and line breaks.
pub(super) fn header(input: &[u8]) -> Pasted {
    let mut start = 0;
    let mut end = input.len();
    trim(input, &mut start, &mut end, AROUND);
    for flag in ["-H", "--header"] {
        if starts_with(input, start, flag.as_bytes()) {
            start += flag.len();
            trim(input, &mut start, &mut end, AROUND);
        }
    }
    // The longer name first.
    let names = [(NAME_OF_ID, Name::Id), (NAME, Name::Metadata)];
    let found = names
        .into_iter()
        .find(|(name, _)| starts_with(input, start, name));
    if let Some((name, _)) = found {
        start += name.len();
        // As in JSON, in a command, or in Envoy's log.
        let between = format!("{AROUND}:=");
        trim(input, &mut start, &mut end, &between);
        // Trailing `=` belongs to the value, as padding.
        while input.get(end) == Some(&b'=') {
            end += 1;
        }
    }
    let within = input.get(start..end).unwrap_or_default();
    let (text, offsets) = unwrapped(within, start);
    Pasted {
        text,
        offsets,
        name: found.map(|(_, name)| name),
    }
}

/// The same for a `FlatNode`; JSON from a log that contains one is kept whole.
pub(super) fn flat_node(input: &[u8]) -> Pasted {
    let trimmed = input.trim_ascii();
    if !trimmed.starts_with(b"{") {
        return header(input);
    }
    let start = input.len() - input.trim_ascii_start().len();
    Pasted {
        text: trimmed.to_vec(),
        offsets: (start..start + trimmed.len()).collect(),
        name: None,
    }
}

impl Pasted {
    /// The original offset of the byte at `offset`, or of the end of the text.
    pub(super) fn offset(&self, offset: usize) -> usize {
        let end = self.offsets.last().map_or(0, |last| last + 1);
        self.offsets.get(offset).copied().unwrap_or(end)
    }
}

fn starts_with(input: &[u8], start: usize, name: &[u8]) -> bool {
    let part = start
        .checked_add(name.len())
        .and_then(|end| input.get(start..end));
    part.is_some_and(|part| part.eq_ignore_ascii_case(name))
}

/// Trims those characters from both ends of the range.
fn trim(input: &[u8], start: &mut usize, end: &mut usize, characters: &str) {
    let all: Vec<&[u8]> = characters
        .char_indices()
        .map(|(index, char)| &characters.as_bytes()[index..index + char.len_utf8()])
        .collect();
    let rest = |start: usize, end: usize| input.get(start..end).unwrap_or_default();
    while let Some(found) = all.iter().find(|one| rest(*start, *end).starts_with(one)) {
        *start += found.len();
    }
    while let Some(found) = all.iter().find(|one| rest(*start, *end).ends_with(one)) {
        *end -= found.len();
    }
}

/// The bytes without white space, and the offset of each, counted from `start`.
fn unwrapped(bytes: &[u8], start: usize) -> (Vec<u8>, Vec<usize>) {
    let mut text = Vec::with_capacity(bytes.len());
    let mut offsets = Vec::with_capacity(bytes.len());
    let mut index = 0;
    'bytes: while let Some(byte) = bytes.get(index) {
        for char in WITHIN.chars() {
            let mut buffer = [0; 4];
            let char = char.encode_utf8(&mut buffer).as_bytes();
            if bytes
                .get(index..)
                .is_some_and(|rest| rest.starts_with(char))
            {
                index += char.len();
                continue 'bytes;
            }
        }
        text.push(*byte);
        offsets.push(start + index);
        index += 1;
    }
    (text, offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_the_value() {
        for pasted in [
            "CgwKBE5B",
            "  CgwKBE5B\n",
            "\"CgwKBE5B\"",
            "'CgwKBE5B'",
            "`CgwKBE5B`",
            "[CgwKBE5B]",
            "[\"CgwKBE5B\"],",
            "<CgwKBE5B>",
            "\u{201c}CgwKBE5B\u{201d}",
            "\u{feff}CgwKBE5B",
            "CgwK\n  BE5B",
            "CgwK\r\nBE5B",
            "CgwK\\\n BE5B",
            "Cg wK\tBE\u{a0}5B",
            "x-envoy-peer-metadata: CgwKBE5B",
            "X-Envoy-Peer-Metadata:CgwKBE5B",
            "x-envoy-peer-metadata=CgwKBE5B",
            "x-envoy-peer-metadata CgwKBE5B",
            "\"x-envoy-peer-metadata\": \"CgwKBE5B\",",
            "{\"x-envoy-peer-metadata\": \"CgwKBE5B\"}",
            "'x-envoy-peer-metadata', 'CgwKBE5B'",
            "-H 'x-envoy-peer-metadata: CgwKBE5B' \\",
            "--header \"x-envoy-peer-metadata: CgwKBE5B\"",
            "< x-envoy-peer-metadata: CgwKBE5B",
        ] {
            let left = header(pasted.as_bytes());
            let text = String::from_utf8(left.text).unwrap();
            assert_eq!(text, "CgwKBE5B", "{pasted:?}");
        }
    }

    #[test]
    fn padding_is_kept() {
        for pasted in ["Cg==", "x-envoy-peer-metadata=Cg==", "'Cg=='", "Cg=\n="] {
            assert_eq!(header(pasted.as_bytes()).text, b"Cg==", "{pasted:?}");
        }
    }

    #[test]
    fn the_id_has_its_own_name() {
        let left = header(b"x-envoy-peer-metadata-id: sidecar~10.0.0.1~a.b~c");
        assert!(left.name == Some(Name::Id));
        assert_eq!(left.text, b"sidecar~10.0.0.1~a.b~c");
    }

    #[test]
    fn each_byte_has_its_original_offset() {
        let left = header(b"\"ab\n cd\"");
        assert_eq!(left.text, b"abcd");
        let offsets: Vec<usize> = (0..5).map(|offset| left.offset(offset)).collect();
        assert_eq!(offsets, [1, 2, 5, 6, 7]);
        assert_eq!(header(b"").offset(0), 0);
    }
}
