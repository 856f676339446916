//! Escapes untrusted text for each output format.

use std::fmt::Write as _;

/// For terminals, and the base of all others: characters that are invisible or
/// change what is shown (controls, escape sequences, bidirectional and
/// zero-width characters) become `\u{..}`, and a backslash becomes two.
#[must_use]
pub fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\\' => visible.push_str("\\\\"),
            _ if is_hidden(char) => visible.extend(char.escape_unicode()),
            _ => visible.push(char),
        }
    }
    visible
}

fn is_hidden(char: char) -> bool {
    char.is_control()
        || matches!(char,
            '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            // XML cannot represent these two.
            | '\u{fffe}'..='\u{ffff}'
            | '\u{e0000}'..='\u{e007f}')
}

/// For text and attributes of HTML and SVG.
#[must_use]
pub fn html(text: &str) -> String {
    entities(&visible(text))
}

/// For HTML and SVG, from text without invisible characters.
#[must_use]
pub fn entities(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            _ => html.push(char),
        }
    }
    html
}

/// For JSON within a `script` element, which would end at the first `</script`.
#[must_use]
pub fn json_in_html(json: &str) -> String {
    // In JSON these occur only in strings, where \u can represent any
    // character.
    json.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

/// For a quoted label of Graphviz DOT, which reads backslashes and entities.
#[must_use]
pub fn dot(text: &str) -> String {
    visible(text)
        .replace('&', "&amp;")
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
}

/// For a quoted label of Mermaid: all but plain characters become entity codes,
/// because labels may contain Markdown and HTML.
#[must_use]
pub fn mermaid(text: &str) -> String {
    let mut mermaid = String::with_capacity(text.len());
    for char in visible(text).chars() {
        if char.is_alphanumeric() || " .,:/-_+".contains(char) {
            mermaid.push(char);
        } else {
            // Writing to a String cannot fail.
            let _ = write!(mermaid, "#{};", u32::from(char));
        }
    }
    mermaid
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "<script>alert(1)</script>\x1b[2J\u{202e}\"]; `a` & \\n";

    #[test]
    fn terminal_output_has_no_escape_sequence_and_no_reversal() {
        let text = visible(HOSTILE);
        assert!(!text.contains(['\x1b', '\u{202e}']), "{text}");
        assert!(text.contains("\\u{1b}[2J\\u{202e}"), "{text}");
        assert_eq!(visible("pay-v1.default"), "pay-v1.default");
        assert_eq!(visible("a\\u{1b}"), "a\\\\u{1b}", "no forged escape");
        assert_eq!(visible("a\u{200b}\u{9b}1m"), "a\\u{200b}\\u{9b}1m");
        assert_eq!(visible("größe 日本"), "größe 日本");
    }

    #[test]
    fn html_output_has_no_tag_and_no_attribute_end() {
        let text = html(HOSTILE);
        assert!(!text.contains(['<', '>', '"', '\'']), "{text}");
        assert!(text.starts_with("&lt;script&gt;alert(1)"), "{text}");
        assert!(text.contains(" &amp; "), "{text}");
    }

    #[test]
    fn json_in_html_stays_the_same_json() {
        let json = serde_json::to_string(HOSTILE).unwrap();
        let embedded = json_in_html(&json);
        assert!(!embedded.contains(['<', '>', '&']), "{embedded}");
        let read: String = serde_json::from_str(&embedded).unwrap();
        assert_eq!(read, HOSTILE);
    }

    #[test]
    fn dot_output_has_no_label_end_and_no_line_break() {
        let text = dot("a\"b\\nc&lt;\n");
        assert_eq!(text, "a\\\"b\\\\\\\\nc&amp;lt;\\\\u{a}");
    }

    #[test]
    fn mermaid_output_has_no_markdown_and_no_html() {
        let text = mermaid(HOSTILE);
        assert!(!text.contains(['<', '"', '`', '[', ']', '&']), "{text}");
        assert!(text.starts_with("#60;script#62;alert#40;1#41;"), "{text}");
        assert_eq!(mermaid("a#quot;"), "a#35;quot#59;");
    }
}
