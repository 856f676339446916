//! The command line.

// These comments are the help that users read.
#![allow(clippy::doc_markdown, rustdoc::bare_urls)]
// These macros panic if the reader is gone.
#![warn(clippy::print_stderr, clippy::print_stdout)]

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::builder::{RangedU64ValueParser, TypedValueParser};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use metadata_exchange::config::Config;
use serde_json::{Value, json};

use crate::check_config::{Found, check};
use crate::decode::{self, Form};
use crate::doctor::gather;
use crate::encode;
use crate::envoy_yaml;
use crate::escape::visible;
use crate::naming::Naming;
use access_log::limits;

mod collect;
mod doctor;
mod live;
mod topology;

/// Shows which workload called which, from Envoys' access logs.
///
/// Envoy's gRPC access log sends each request to a collector; the metadata exchange adds the
/// workload on the other side. mxctl is such a collector, and draws the call graph, live or from a
/// recording.
#[derive(Debug, Parser)]
#[command(name = "mxctl", version, after_help = EXAMPLES)]
struct Arguments {
    /// Print JSON, errors included
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  mxctl collect --listen 0.0.0.0:11800 --status 5xx    every failing request, live
  mxctl collect --listen 0.0.0.0:11800 --out calls.jsonl
  mxctl topology calls.jsonl                           the graph as a table
  mxctl topology calls.jsonl --as skywalking           what SkyWalking would draw of it
  mxctl topology --listen 0.0.0.0:11800 --serve 127.0.0.1:8080
  mxctl decode header CgwKBE5BTUUSBBoCYTE=
  mxctl encode bootstrap.yaml
  mxctl check-config plugin.json
  mxctl doctor 127.0.0.1:15000";

#[derive(Debug, Subcommand)]
enum Command {
    Collect(collect::Collect),
    Topology(topology::Arguments),
    Decode(Decode),
    Encode(Encode),
    Doctor(doctor::Arguments),
    CheckConfig(CheckConfig),
    /// Print a shell's completions: source <(mxctl completions bash)
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Decode a header, a FlatNode or an access-log message to JSON.
///
/// Accepts a header as pasted: with its name, quotes, brackets or line breaks. For invalid input it
/// prints the byte at which decoding fails, and what the input looks like. Control characters are
/// escaped. The exit status is 1 if the input is invalid and 2 if it is empty.
#[derive(Debug, Args)]
struct Decode {
    /// The form of the input
    form: Form,
    /// The text to decode; without it, standard input is read
    value: Option<String>,
}

/// Show the header that a node would send, and its size, with the filter's own code.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("source").required(true))]
struct Encode {
    /// A bootstrap, config_dump, node or node metadata in JSON or YAML, parsed as Envoy does; -
    /// reads standard input
    #[arg(group = "source")]
    file: Option<PathBuf>,
    /// Ask a running Envoy's admin interface, such as http://127.0.0.1:9901 or
    /// unix:/run/envoy/admin.sock
    #[arg(long, value_name = "URL", group = "source")]
    admin: Option<String>,
    /// The plugin configuration, which decides what is shared, and may say who the node is
    #[arg(long, value_name = "FILE")]
    plugin_config: Option<PathBuf>,
    /// An environment variable of Envoy that the plugin configuration may name
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let variable = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = variable.ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Check a plugin configuration with the filter's own code.
///
/// The exit status is 0 if the filter accepts it, 1 if it would reject it, and 2 if the file cannot
/// be read.
#[derive(Debug, Args)]
struct CheckConfig {
    /// The configuration in JSON, or a WasmPlugin in YAML; - reads standard input
    file: PathBuf,
    /// Show who the proxy of this node is: a bootstrap, config_dump, node or node metadata
    #[arg(long, value_name = "FILE")]
    node: Option<PathBuf>,
    /// An environment variable of Envoy that the configuration may name
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
}

/// Limits on live entries.
#[derive(Debug, Args)]
struct Limits {
    /// The most concurrent streams; an Envoy opens one for each worker and log
    #[arg(long, value_name = "COUNT", default_value_t = limits::Limits::default().streams,
        value_parser = up_to(limits::MAX_STREAMS))]
    max_streams: usize,
    /// The longest message. Received messages take at most 128 MiB of memory, or about 70 times
    /// this value if that is more; in addition, each stream may hold twice this value
    #[arg(long, value_name = "BYTES", default_value_t = limits::Limits::default().message_bytes,
        value_parser = up_to(limits::MAX_MESSAGE_BYTES))]
    max_message: usize,
}

fn up_to(most: usize) -> impl TypedValueParser<Value = usize> {
    RangedU64ValueParser::<usize>::new().range(1..=most as u64)
}

impl Limits {
    fn of_server(&self) -> limits::Limits {
        limits::Limits {
            streams: self.max_streams,
            message_bytes: self.max_message,
        }
    }
}

/// How nodes are named.
#[derive(Debug, Args)]
struct Mapping {
    /// Name services by this metadata-service-mapping.yaml of SkyWalking
    /// instead of its default
    #[arg(long, value_name = "FILE")]
    mapping: Option<PathBuf>,
}

impl Mapping {
    fn naming(&self) -> Result<Naming> {
        let Some(path) = &self.mapping else {
            return Ok(Naming::default());
        };
        let named = || path.display().to_string();
        let yaml = std::fs::read_to_string(path).with_context(named)?;
        Naming::of_yaml(&yaml).with_context(named)
    }
}

/// The input is empty. Like a wrong argument, this exits with status 2.
#[derive(Debug)]
pub(super) struct Empty;

impl std::fmt::Display for Empty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the input is empty: there is nothing to read")
    }
}

impl std::error::Error for Empty {}

/// Runs the command line of this process.
pub async fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return misused(&error),
    };
    let json = arguments.json;
    let done = match arguments.command {
        Command::Collect(collect) => collect.run(json).await,
        Command::Topology(topology) => topology.run(json).await,
        Command::Decode(decode) => decode.run(),
        Command::Encode(encode) => encode.run(json).await,
        Command::Doctor(doctor) => return doctor.run(json).await,
        Command::CheckConfig(check) => check.run(json),
        Command::Completions { shell } => completions(shell),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error, json);
            let is_broken_empty = error
                .downcast_ref::<decode::Broken>()
                .is_some_and(decode::Broken::is_empty);
            if is_broken_empty || error.is::<Empty>() || error.is::<Unreadable>() {
                ExitCode::from(UNREADABLE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// The exit status if the input cannot be read, the same as for wrong arguments.
const UNREADABLE: u8 = 2;

/// The input could not be read.
#[derive(Debug)]
struct Unreadable(String);

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreadable {}

/// Prints what is wrong with the arguments, or the help if that was requested.
fn misused(error: &clap::Error) -> ExitCode {
    let mut arguments = std::env::args_os().take_while(|argument| argument != "--");
    if error.use_stderr() && arguments.any(|argument| argument == "--json") {
        let text = error.render().to_string();
        let text = text.trim_end();
        let object = json!({ "error": text.strip_prefix("error: ").unwrap_or(text) });
        say_line(&plain_json(&object.to_string()));
    } else {
        // The reader may be gone.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

fn report(error: &anyhow::Error, json: bool) {
    // A closed pipe is not an error of this program.
    if let Some(io) = error.downcast_ref::<io::Error>()
        && io.kind() == io::ErrorKind::BrokenPipe
    {
        return;
    }
    if json {
        let mut object = json!({ "error": visible(&format!("{error:#}")) });
        if let Some(broken) = error.downcast_ref::<decode::Broken>() {
            object = json!({ "error": broken });
        }
        say_line(&object.to_string());
    } else {
        say(&visible(&format!("{error:#}")));
    }
}

/// Writes to standard error. A closed standard error is ignored.
fn say(what: &str) {
    say_line(&format!("mxctl: {what}"));
}

fn say_line(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "mxctl", &mut script);
    io::stdout().write_all(&script)?;
    Ok(())
}

/// The longest input that is read into memory.
const MAX_INPUT: u64 = 64 << 20;

fn stdin() -> Result<Vec<u8>> {
    if io::stdin().is_terminal() {
        say("reading standard input");
    }
    let mut input = Vec::new();
    io::stdin()
        .lock()
        .take(MAX_INPUT + 1)
        .read_to_end(&mut input)?;
    if input.len() as u64 > MAX_INPUT {
        bail!("standard input is longer than {MAX_INPUT} bytes");
    }
    Ok(input)
}

fn file(path: &Path) -> Result<String> {
    if path == Path::new("-") {
        String::from_utf8(stdin()?).context("standard input is not UTF-8")
    } else {
        std::fs::read_to_string(path).with_context(|| path.display().to_string())
    }
}

/// Prints JSON that is safe on a terminal: JSON escapes control characters, and this function the
/// other invisible ones.
fn print_json(value: &Value) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", plain_json(&serde_json::to_string_pretty(value)?))?;
    Ok(())
}

/// Escapes characters that a terminal hides or interprets.
fn plain_json(json: &str) -> String {
    let mut plain = String::with_capacity(json.len());
    for char in json.chars() {
        if char != '\n'
            && char != '\\'
            && visible(char.encode_utf8(&mut [0; 4])).len() > char.len_utf8()
        {
            let mut units = [0; 2];
            for unit in char.encode_utf16(&mut units) {
                // Writing to a String cannot fail.
                let _ = write!(plain, "\\u{unit:04x}");
            }
        } else {
            plain.push(char);
        }
    }
    plain
}

impl Decode {
    fn run(&self) -> Result<()> {
        let input = match &self.value {
            Some(value) if value != "-" => value.clone().into_bytes(),
            _ => stdin()?,
        };
        print_json(&decode::decode(self.form, &input)?)
    }
}

impl Encode {
    async fn run(&self, json: bool) -> Result<()> {
        let node = match (&self.admin, &self.file) {
            (Some(url), _) => {
                let evidence = gather::configuration_of(url).await?;
                encode::node_of(&evidence.documents, evidence.server_info.as_ref())?
            }
            (None, Some(path)) => node_in(path)?,
            (None, None) => bail!("give a file or --admin"),
        };
        let config = match &self.plugin_config {
            Some(path) => {
                let name = path.display().to_string();
                check(&name, &file(path)?).context(name)?.1
            }
            None => Config::default(),
        };
        let sent = encode::encode(&node, &config, &self.env)?;
        if json {
            return print_json(&json!(sent));
        }
        let text = |text: &Option<String>| text.as_deref().map_or("(not sent)".to_owned(), visible);
        let mut out = io::stdout().lock();
        writeln!(out, "x-envoy-peer-metadata-id: {}", text(&sent.id))?;
        writeln!(out, "x-envoy-peer-metadata: {}", text(&sent.header))?;
        writeln!(
            out,
            "\n{} bytes of id, {} of metadata; {} in a request, names included, before HPACK",
            sent.id_bytes, sent.header_bytes, sent.request_bytes
        )?;
        if !config.node.is_empty() {
            writeln!(out, "{}", who(&sent))?;
        }
        for note in &sent.notes {
            writeln!(out, "note: {}", visible(note))?;
        }
        Ok(())
    }
}

/// The node in a file.
fn node_in(path: &Path) -> Result<Value> {
    let name = path.display().to_string();
    let content = file(path)?;
    if content.trim().is_empty() {
        return Err(Unreadable(format!("{name} is empty: it contains no node")).into());
    }
    envoy_yaml::parse_file(&name, &content).context(name)
}

/// Who the proxy is, as a line.
fn who(sent: &encode::Sent) -> String {
    let (id, metadata) = (&sent.node["id"], &sent.node["metadata"]);
    format!(
        "this proxy is {}, {}",
        plain_json(&id.to_string()),
        plain_json(&metadata.to_string())
    )
}

impl CheckConfig {
    fn run(&self, json: bool) -> Result<()> {
        let name = self.file.display().to_string();
        let content = file(&self.file).map_err(|error| Unreadable(format!("{error:#}")))?;
        let (found, config) = check(&name, &content).context(name.clone())?;
        let node = self.node.as_deref().map(node_in).transpose()?;
        let sent = if node.is_some() || !self.env.is_empty() {
            let node = node.unwrap_or_else(|| json!({}));
            Some(encode::encode(&node, &config, &self.env)?)
        } else {
            None
        };
        if json {
            let mut answer = json!({ "file": name, "accepted": true });
            if let Some(sent) = sent {
                answer["node"] = sent.node;
                answer["notes"] = json!(sent.notes);
            }
            return print_json(&answer);
        }
        let what = match found {
            Found::File => "",
            Found::WasmPlugin => " (spec.pluginConfig of the WasmPlugin)",
        };
        let mut out = io::stdout().lock();
        writeln!(out, "{}: ok{what}\n{config:#?}", visible(&name))?;
        if let Some(sent) = sent {
            writeln!(out, "{}", who(&sent))?;
            for note in &sent.notes {
                writeln!(out, "note: {}", visible(note))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn compact_json_has_the_same_content() {
        let value = json!({ "a\u{202e}": "\u{1b}[2J \u{e0041} \\ \u{9b} ä \n" });
        let plain = plain_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(
            !plain.contains(['\u{1b}', '\u{202e}', '\u{e0041}', '\u{9b}']),
            "{plain}"
        );
        assert_eq!(serde_json::from_str::<Value>(&plain).unwrap(), value);
    }
}
