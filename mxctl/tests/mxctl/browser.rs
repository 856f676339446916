//! The page in a real browser.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::json;

use crate::stream::{Stream, peer, tcp};
use crate::tool::{PATIENCE, Tool, run};
use crate::topology::line;

const HOW: &str =
    "the page is tested in Chromium, which is missing: apt-get install chromium-driver";

/// A headless browser and its driver; both end when it is dropped.
struct Browser {
    driver: Child,
    client: Client,
}

impl Browser {
    async fn start() -> Result<Self> {
        Self::of_size(1400, 900).await
    }

    /// A browser with a page of this size, as on a phone or a screen.
    async fn of_size(width: u32, height: u32) -> Result<Self> {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context(HOW)?;
        let lines = BufReader::new(driver.stdout.take().context("no output")?).lines();
        let started = "ChromeDriver was started successfully on port ";
        let mut port = None;
        for line in lines {
            if let Some(said) = line?.strip_prefix(started) {
                port = Some(said.trim_end_matches('.').to_owned());
                break;
            }
        }
        let port = port.context(HOW)?;
        // The sandbox needs privileges that containers lack. The page is trusted.
        let arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage"];
        let metrics = json!({ "width": width, "height": height, "pixelRatio": 1, "mobile": false, "touch": false });
        let capabilities = json!({ "goog:chromeOptions": {
            "args": arguments,
            // Windows cannot be as narrow as a phone.
            "mobileEmulation": { "deviceMetrics": metrics },
        } });
        let capabilities = capabilities.as_object().cloned().unwrap_or_default();
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .context(HOW)?;
        Ok(Self { driver, client })
    }

    async fn end(mut self) -> Result<()> {
        self.client.clone().close().await?;
        self.driver.kill()?;
        self.driver.wait()?;
        Ok(())
    }

    async fn text(&self, css: &str) -> Result<String> {
        let element = self.client.find(Locator::Css(css)).await;
        Ok(element.with_context(|| css.to_owned())?.text().await?)
    }

    async fn count(&self, css: &str) -> Result<usize> {
        Ok(self.client.find_all(Locator::Css(css)).await?.len())
    }

    async fn wait_for_count(&self, css: &str, count: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.count(css).await?;
            if seen == count {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{seen} of {css} instead of {count}"
            );
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Clicks on the workload with this full name.
    async fn choose(&self, name: &str) -> Result<()> {
        for workload in self.client.find_all(Locator::Css("g.workload")).await? {
            let title = workload.find(Locator::Css("title")).await?;
            if title.prop("textContent").await?.as_deref() == Some(name) {
                return Ok(workload.click().await?);
            }
        }
        bail!("no workload {name}")
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

const SCRIPT: &str = "<script>document.title='hacked'</script>";
const IMAGE: &str = "<img src=x onerror=\"document.title='hacked'\">";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_names_are_not_executed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("page.html");
    let out = path.to_str().context("a path that is not UTF-8")?;
    let lines = line("a", SCRIPT, 200) + &line(IMAGE, "</script><b>", 500);
    let arguments = ["topology", "-", "--format", "html", "--out", out];
    let done = run(&arguments, lines.as_bytes())?;
    ensure!(done.status.success(), "{done:?}");

    let browser = Browser::start().await?;
    browser.client.goto(&format!("file://{out}")).await?;
    assert_eq!(browser.count("#graph g.workload").await?, 4);
    assert_eq!(browser.count("#graph g.edge").await?, 2);
    assert_eq!(browser.count("#graph g.edge.failing").await?, 1);
    browser.choose(&format!("{SCRIPT}.shop")).await?;
    assert_eq!(browser.text("#name").await?, format!("{SCRIPT}.shop"));
    let details = browser.text("#details").await?;
    for shown in [
        &format!("app={SCRIPT}"),
        "APP_CONTAINERS",
        "Called by",
        "a.shop: 1 call",
    ] {
        ensure!(details.contains(shown), "{shown} is not in {details}");
    }
    browser.choose(&format!("{IMAGE}.shop")).await?;
    let details = browser.text("#details").await?;
    ensure!(
        details.contains("</script><b>.shop: 1 call, 1 error"),
        "{details}"
    );
    assert_eq!(browser.count("body img, body b").await?, 0);
    assert_eq!(browser.client.title().await?, "Call graph");
    browser.end().await
}

/// Finds misplaced labels, boxes and names by their position on the screen.
const MISPLACED: &str = r#"
    const found = [];
    const rect = (element) => element.getBoundingClientRect();
    const all = (css) => [...document.querySelectorAll(css)];
    const name = (element) => element.textContent;
    const over = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 0.5
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 0.5;
    const within = (a, b) => a.left >= b.left - 0.5 && a.right <= b.right + 0.5
        && a.top >= b.top - 0.5 && a.bottom <= b.bottom + 0.5;
    const root = document.documentElement;
    if (root.scrollWidth > innerWidth) found.push(`the page is ${root.scrollWidth} wide`);
    const graph = document.getElementById("graph");
    if (graph.scrollWidth > graph.clientWidth) found.push("the graph is cut at its side");
    if (graph.scrollHeight > graph.clientHeight) found.push("the graph is cut below");
    const boxes = all("g.workload > path"), labels = all("g.edge text");
    for (const one of [...boxes, ...labels, ...all("g.edge path")]) {
        if (!within(rect(one), rect(graph))) found.push(`outside: ${name(one.parentNode)}`);
    }
    for (const text of all("g.workload text")) {
        const box = text.parentNode.querySelector("path");
        if (!within(rect(text), rect(box))) found.push(`a name beyond its box: ${name(text)}`);
        if (rect(text).height < 6) found.push(`not legible: ${name(text)}`);
    }
    labels.forEach((label, number) => {
        for (const box of boxes) {
            if (over(rect(label), rect(box))) found.push(`${name(label)} is on ${name(box.parentNode)}`);
        }
        for (const other of labels.slice(number + 1)) {
            if (over(rect(label), rect(other))) found.push(`${name(label)} is on ${name(other)}`);
        }
    });
    return { boxes: boxes.length, labels: labels.length, found };
"#;

/// The calls of a shop: a fan-out, a skipped layer, two services that call each other, and one that
/// calls itself. Each edge's label has several digits.
fn shop() -> String {
    let edges = [
        ("ingress", "frontend"),
        ("frontend", "currency"),
        ("frontend", "productcatalog"),
        ("frontend", "cart"),
        ("frontend", "recommendation"),
        ("frontend", "shipping"),
        ("frontend", "checkout"),
        ("frontend", "advertisements-of-the-season"),
        ("checkout", "currency"),
        ("checkout", "productcatalog"),
        ("checkout", "cart"),
        ("checkout", "shipping"),
        ("checkout", "payment"),
        ("checkout", "email"),
        ("recommendation", "productcatalog"),
        ("payment", "card-network"),
        ("card-network", "payment"),
        ("currency", "currency"),
    ];
    let lines = edges
        .into_iter()
        .enumerate()
        .flat_map(|(number, (from, to))| {
            let failed = (0..number).map(|_| line(from, to, 503));
            let fine = (0..90 + number * 60).map(|_| line(from, to, 200));
            failed.chain(fine).collect::<Vec<_>>()
        });
    lines.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_never_overlap_at_any_width() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("page.html");
    let out = path.to_str().context("a path that is not UTF-8")?;
    let arguments = ["topology", "-", "--format", "html", "--out", out];
    let done = run(&arguments, shop().as_bytes())?;
    ensure!(done.status.success(), "{done:?}");
    for width in [400, 1400] {
        let browser = Browser::of_size(width, 900).await?;
        browser.client.goto(&format!("file://{out}")).await?;
        let seen = browser.client.execute(MISPLACED, Vec::new()).await?;
        if let Some(folder) = std::env::var_os("SCREENSHOTS") {
            let name = format!("topology-{width}.png");
            std::fs::write(
                std::path::Path::new(&folder).join(name),
                browser.client.screenshot().await?,
            )?;
        }
        assert_eq!(
            seen,
            json!({ "boxes": 12, "labels": 18, "found": [] }),
            "{width} px"
        );
        browser.end().await?;
    }
    Ok(())
}

/// Starts the tool with a live page; returns it with the addresses of its collector and its page.
fn serve() -> Result<(Tool, SocketAddr, SocketAddr)> {
    let anywhere = "127.0.0.1:0";
    let mut tool = Tool::start(&["topology", "--listen", anywhere, "--serve", anywhere])?;
    let collector = tool.collector()?;
    let page = tool.address("mxctl: the page is at http://")?;
    Ok((tool, collector, page))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_live_page_follows_the_graph() -> Result<()> {
    let (tool, collector, page) = serve()?;
    let browser = Browser::start().await?;
    browser.client.goto(&format!("http://{page}/")).await?;
    browser.wait_for_count("#edges tr", 1).await?;
    let stream = Stream::open(collector, "a/outbound", "a").await?;
    stream.request(&peer("b"), "/", 200).await?;
    browser.wait_for_count("#graph g.edge", 1).await?;
    browser.choose("b.shop").await?;
    stream.request(&peer(SCRIPT), "/", 200).await?;
    browser.wait_for_count("#graph g.edge", 2).await?;
    assert_eq!(browser.count("#edges tr").await?, 3);
    // Connections have a table of their own.
    assert_eq!(browser.count("#connections tr").await?, 0);
    stream.send(tcp(&peer("db"))).await?;
    browser.wait_for_count("#graph g.edge", 3).await?;
    assert_eq!(browser.count("#edges tr").await?, 3);
    assert_eq!(browser.count("#connections tr").await?, 2);
    // The log tells nothing of open ones.
    let row = browser.text("#connections tr:nth-child(2)").await?;
    assert_eq!(row, "a.shop db.shop client tcp 1 0 0 B 0 B");
    // The selection stays.
    assert_eq!(browser.text("#name").await?, "b.shop");
    assert_eq!(browser.client.title().await?, "Call graph");
    browser.end().await?;

    tool.signal("-INT")?;
    let done = tool.end()?;
    ensure!(done.status.success(), "{done:?}");
    assert!(
        done.stdout.contains("4 workloads, 3 edges of 3 entries"),
        "{done:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_live_page_rejects_other_host_names() -> Result<()> {
    let (_tool, _, page) = serve()?;
    for (host, status) in [
        ("127.0.0.1", "200"),
        ("localhost:1", "200"),
        ("evil.example", "421"),
    ] {
        let request =
            format!("GET /topology.json HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let mut stream = TcpStream::connect(page)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let reply = std::io::read_to_string(stream)?;
        let start = format!("HTTP/1.1 {status} ");
        ensure!(reply.starts_with(&start), "{host}: {reply}");
    }
    Ok(())
}
