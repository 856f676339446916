//! `deploy/envoy`: the bootstraps, the unit, and the filter in the README.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use envoy_test::bootstrap::v8_first;
use envoy_test::{Lab, repository};
use metadata_exchange::config::Config;
use serde_json::Value;

use crate::vm::{MODULE, bootstrap, http_filters};
use crate::{parse, plugin_configuration, yaml_files};

envoy_test::stories!(
    envoy_accepts_every_bootstrap,
    validation_reports_an_error_in_the_plugin_configuration,
    the_way_to_add_the_filter_works,
    v8_is_started_first,
);

async fn envoy_accepts_every_bootstrap(lab: &Lab) -> Result<()> {
    let bootstraps = yaml_files("deploy/envoy")?;
    assert!(!bootstraps.is_empty());
    for path in bootstraps {
        let text = std::fs::read_to_string(&path)?;
        if !path.ends_with("v8-first.yaml") {
            assert!(text.contains(MODULE), "{} has no filter", path.display());
        }
        validate(lab, &text)
            .await
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// The module that starts V8 has the source that the file shows, and every bootstrap includes it.
async fn v8_is_started_first(lab: &Lab) -> Result<()> {
    let text = std::fs::read_to_string(repository("deploy/envoy/v8-first.yaml"))?;
    let extensions = parse(&text)?.remove(0)["bootstrap_extensions"].take();
    assert_eq!(extensions, v8_first());
    let bytes = "/0/typed_config/config/vm_config/code/local/inline_bytes";
    let bytes = extensions.pointer(bytes).and_then(Value::as_str);
    let comment = text.lines().map_while(|line| line.strip_prefix('#'));
    let source: String = comment
        .skip_while(|line| !line.contains("(module"))
        .collect();
    let module = BASE64_STANDARD.encode(wat::parse_str(source)?);
    assert_eq!(bytes, Some(module.as_str()));

    let sidecar = std::fs::read_to_string(repository("deploy/envoy/sidecar.yaml"))?;
    assert_eq!(
        parse(&sidecar)?.remove(0)["bootstrap_extensions"],
        extensions
    );

    // It starts two VMs on the main thread, but no filter.
    let mut bootstrap = serde_json::json!({
        "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } } },
    });
    bootstrap["bootstrap_extensions"] = extensions;
    let envoy = lab.start_envoy(&bootstrap).await?;
    let stats = envoy.stats().await?;
    assert_eq!(stats["wasm.envoy.wasm.runtime.v8.active"], 2);
    assert!(!stats.keys().any(|name| name.contains("metadata_exchange")));
    Ok(())
}

/// Validation passes, because the filter is merely idle, and the unit's validation before the start logs why.
async fn validation_reports_an_error_in_the_plugin_configuration(lab: &Lab) -> Result<()> {
    let text = std::fs::read_to_string(repository("deploy/envoy/sidecar.yaml"))?;
    let wrong = text.replace(r#"value: "{}""#, r#"value: '{"trsut": "any"}'"#);
    assert_ne!(wrong, text);
    let error = validate(lab, &wrong).await.expect_err("accepted");
    assert!(
        error
            .to_string()
            .contains("plugin configuration refused: unknown key \"trsut\""),
        "{error}"
    );
    Ok(())
}

/// The filter in the README equals the sidecar's filter.
async fn the_way_to_add_the_filter_works(lab: &Lab) -> Result<()> {
    let readme = std::fs::read_to_string(repository("README.md"))?;
    let snippet = readme
        .split("```")
        .filter_map(|block| block.strip_prefix("yaml\n"))
        .find(|block| block.contains(MODULE))
        .context("README.md has no filter")?;
    let [filter] = <[Value; 1]>::try_from(
        parse(snippet)?
            .remove(0)
            .as_array()
            .context("no list")?
            .clone(),
    )
    .ok()
    .context("not one filter")?;
    let mut bootstrap = bootstrap()?;
    for direction in ["INBOUND", "OUTBOUND"] {
        assert_eq!(
            http_filters(&mut bootstrap, direction)?[0],
            filter,
            "{direction}"
        );
    }
    validate(lab, &bootstrap.to_string()).await
}

async fn validate(lab: &Lab, bootstrap: &str) -> Result<()> {
    let module = lab
        .module()
        .to_str()
        .context("the module's path is not UTF-8")?;
    let file = tempfile::Builder::new()
        .suffix(".yaml")
        .tempfile_in(lab.dir())?;
    std::fs::write(file.path(), bootstrap.replace(MODULE, module))?;
    lab.validate(file.path()).await
}

#[test]
fn the_plugin_configuration_is_accepted() -> Result<()> {
    let mut bootstrap = bootstrap()?;
    for direction in ["INBOUND", "OUTBOUND"] {
        let filter = &http_filters(&mut bootstrap, direction)?[0];
        let configuration = plugin_configuration(&filter["typed_config"]).context("none")?;
        Config::parse(configuration.as_bytes()).map_err(anyhow::Error::msg)?;
    }
    Ok(())
}

/// Checked by systemd itself if it is installed, as it is in CI.
#[test]
fn systemd_accepts_the_unit() -> Result<()> {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        ensure!(
            std::env::var_os("CI").is_none(),
            "CI has no systemd-analyze"
        );
        println!("skipped: systemd-analyze is not installed");
        return Ok(());
    }
    let unit = std::fs::read_to_string(repository("deploy/envoy/envoy.service"))?;
    let (accepted, said) = verify(&unit)?;
    assert!(accepted && said.is_empty(), "{said}");
    let (_, said) = verify(&unit.replace("ProtectSystem", "ProtectSytsem"))?;
    assert!(
        said.contains("ProtectSytsem"),
        "a mistake is not noticed: {said}"
    );
    Ok(())
}

fn verify(unit: &str) -> Result<(bool, String)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("envoy.service");
    // systemd requires the program to exist.
    std::fs::write(&path, unit.replace("/usr/local/bin/envoy", "/bin/true"))?;
    let checked = Command::new("systemd-analyze")
        .arg("verify")
        .arg(&path)
        .output()?;
    let said = String::from_utf8(checked.stderr)?;
    Ok((checked.status.success(), said))
}
