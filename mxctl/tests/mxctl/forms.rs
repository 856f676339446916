//! `mxctl decode`, `mxctl encode` and `mxctl completions`

use anyhow::{Context as _, Result, ensure};
use metadata_exchange::peer::{flat, header};
use serde_json::json;

use crate::stream::peer;
use crate::tool::run;

#[test]
fn a_header_round_trips() -> Result<()> {
    let node = include_str!("../../../testdata/nodes/derived-gateway.node.json");
    let encoded = run(&["encode", "-", "--json"], node.as_bytes())?;
    let sent = encoded.json()?;
    let header = sent["header"].as_str().context("no header")?;
    assert_eq!(sent["header_bytes"], json!(header.len()));
    let decoded = run(&["decode", "header"], header.as_bytes())?;
    let node: serde_json::Value = serde_json::from_str(node)?;
    let metadata = &decoded.json()?["metadata"];
    for key in ["NAME", "OWNER", "LABELS", "APP_CONTAINERS"] {
        assert_eq!(metadata[key], node["metadata"][key]);
    }
    assert_eq!(
        run(&["decode", "header", header], b"")?.stdout,
        decoded.stdout
    );
    let text = run(&["encode", "-"], node.to_string().as_bytes())?.stdout;
    assert!(
        text.contains(&format!("x-envoy-peer-metadata: {header}\n")),
        "{text}"
    );
    assert!(
        text.contains(&format!(" {} of metadata", header.len())),
        "{text}"
    );
    Ok(())
}

#[test]
fn a_yaml_bootstrap_is_encoded_with_notes() -> Result<()> {
    let yaml = b"node:\n  id: sidecar~1\n  metadata:\n    NAME: pay\n    OWNER: {no: text}\n";
    let done = run(&["encode", "-"], yaml)?;
    ensure!(done.status.success(), "{done:?}");
    assert!(
        done.stdout
            .contains("note: node metadata \"OWNER\" is left out"),
        "{done:?}"
    );
    let bad = run(&["encode", "-"], b"a: [")?;
    ensure!(
        !bad.status.success() && bad.stderr.contains("neither JSON nor YAML"),
        "{bad:?}"
    );
    let none = run(&["encode"], b"")?;
    ensure!(none.stderr.contains("--admin"), "{none:?}");
    Ok(())
}

#[test]
fn a_malformed_input_is_an_error_with_its_offset() -> Result<()> {
    let done = run(&["decode", "header", "Cgw_"], b"")?;
    ensure!(!done.status.success(), "{done:?}");
    assert!(
        done.stderr
            .starts_with("mxctl: at byte 3 of the text: not standard base64"),
        "{done:?}"
    );
    let done = run(&["decode", "header", "Cgw_", "--json"], b"")?;
    let error: serde_json::Value = serde_json::from_str(&done.stderr)?;
    assert_eq!(error["error"]["offset"], json!(3));
    let done = run(&["decode", "als"], b"\x0a\xff")?;
    assert!(
        done.stderr.starts_with("mxctl: at byte 2 of the message: "),
        "{done:?}"
    );
    Ok(())
}

#[test]
fn each_command_has_help_with_examples() -> Result<()> {
    for (command, taught) in [
        ("collect", "drops nothing"),
        ("topology", "Errors are"),
        ("decode", "the byte at which"),
        ("doctor", "exit status"),
        ("check-config", "exit status"),
    ] {
        let help = run(&[command, "--help"], b"")?.stdout;
        assert!(help.contains(taught), "{help}");
    }
    Ok(())
}

#[test]
fn a_hostile_text_is_escaped_json() -> Result<()> {
    use base64::Engine as _;
    let bytes = flat::write(&peer("\u{1b}[2J\u{202e}\u{9b}"));
    let text = base64::prelude::BASE64_STANDARD.encode(bytes);
    let done = run(&["decode", "flat-node", &text], b"")?;
    ensure!(
        !done.stdout.contains(['\u{1b}', '\u{202e}', '\u{9b}']),
        "{done:?}"
    );
    assert_eq!(
        done.json()?["metadata"]["LABELS"]["app"],
        json!("\u{1b}[2J\u{202e}\u{9b}")
    );
    let value = header::encode(&peer("a\u{202e}b"));
    let done = run(&["decode", "header", &value], b"")?;
    ensure!(done.stdout.contains("a\\u202eb"), "{done:?}");
    Ok(())
}

#[test]
fn every_shell_has_completions() -> Result<()> {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let done = run(&["completions", shell], b"")?;
        ensure!(
            done.status.success() && done.stdout.contains("topology"),
            "{done:?}"
        );
    }
    Ok(())
}

#[test]
fn empty_input_has_its_own_error() -> Result<()> {
    for arguments in [
        &["decode", "header"][..],
        &["decode", "header", ""],
        &["decode", "flat-node"],
        &["decode", "als"],
        &["encode", "-"],
    ] {
        for input in [&b""[..], b" \n"] {
            let done = run(arguments, input)?;
            assert_eq!(done.status.code(), Some(2), "{arguments:?}: {done:?}");
            assert!(done.stderr.contains("empty"), "{arguments:?}: {done:?}");
        }
    }
    Ok(())
}

#[test]
fn a_pasted_header_is_decoded() -> Result<()> {
    let value = header::encode(&peer("pay"));
    let (first, second) = value.split_at(30);
    for pasted in [
        format!("x-envoy-peer-metadata: {value}\n"),
        format!("\"x-envoy-peer-metadata\": \"{value}\","),
        format!("[{value}]"),
        format!("{first}\n  {second}\n"),
    ] {
        let done = run(&["decode", "header"], pasted.as_bytes())?;
        assert_eq!(done.json()?["metadata"]["NAME"], json!("pay-1"), "{pasted}");
    }
    Ok(())
}

#[test]
fn a_configuration_is_checked() -> Result<()> {
    let check = |content: &str| run(&["check-config", "-"], content.as_bytes());
    let good = check(r#"{ "trust": "mtls" }"#)?;
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    ensure!(good.stdout.starts_with("-: ok\n"), "{good:?}");
    // An empty one gives the defaults, as in the filter.
    assert_eq!(check("")?.status.code(), Some(0));
    let bad = check(r#"{ "trsut": "mtls" }"#)?;
    assert_eq!(bad.status.code(), Some(1), "{bad:?}");
    ensure!(
        bad.stderr.starts_with("mxctl: -: unknown key \"trsut\""),
        "{bad:?}"
    );
    ensure!(
        bad.stderr.trim_end().ends_with("did you mean \"trust\"?"),
        "{bad:?}"
    );
    let none = run(&["check-config", "/nowhere.json"], b"")?;
    assert_eq!(none.status.code(), Some(2), "{none:?}");
    let json = run(&["check-config", "-", "--json"], b"{}")?.json()?;
    assert_eq!(json, json!({ "file": "-", "accepted": true }));
    Ok(())
}
