//! What a request costs in the VM: guest instructions of a whole stream in a warm VM, from context to deletion. They are
//! counted, so the same module gives the same figures everywhere, and a regression names its path.

use crate::support::*;
use serde_json::{Value as Json, json};
use wasm_host::{Direction, Headers, Properties};

/// A node with eleven fields and five labels, whose header has 944 bytes.
fn workload(name: &str) -> Workload {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../testdata/vectors/k8s_pod_client.json"
    );
    let vector = std::fs::read(file).expect("the vector");
    let mut vector: Json = serde_json::from_slice(&vector).expect("JSON");
    let mut metadata = vector["node"]["metadata"].take();
    metadata["NAME"] = json!(format!("{name}-84975bc778-pxz2w"));
    Workload {
        id: format!("sidecar~10.52.0.34~{name}-84975bc778-pxz2w.default~default.svc.cluster.local"),
        metadata,
    }
}

struct Path {
    name: &'static str,
    direction: Direction,
    request: Headers,
    response: Headers,
    /// Whether the peer is in the cache.
    is_cached: bool,
    /// A little above what was reached, see docs/cost.md.
    ceiling: u64,
}

fn paths() -> [Path; 5] {
    let caller = || workload("productpage-v1").headers();
    let nobody = Headers::new;
    let path = |name, direction, request, response, is_cached, ceiling| Path {
        name,
        direction,
        request,
        response,
        is_cached,
        ceiling,
    };
    [
        path(
            "outbound, silent callee",
            Direction::Outbound,
            nobody(),
            nobody(),
            true,
            1_350,
        ),
        path(
            "inbound, peer cached",
            Direction::Inbound,
            caller(),
            nobody(),
            true,
            2_250,
        ),
        path(
            "outbound, peer cached",
            Direction::Outbound,
            nobody(),
            caller(),
            true,
            2_550,
        ),
        path(
            "inbound, peer new",
            Direction::Inbound,
            caller(),
            nobody(),
            false,
            84_000,
        ),
        path(
            "outbound, peer new",
            Direction::Outbound,
            nobody(),
            caller(),
            false,
            84_000,
        ),
    ]
}

#[test]
fn guest_instructions_stay_below_their_ceilings() {
    let mut over = Vec::new();
    for path in paths() {
        let mut proxy = Proxy::of(&workload("local-v1"), &json!({}));
        for other in 0..30 {
            let other = workload(&format!("other-{other}")).headers();
            proxy.exchange(path.direction, &other, &other);
        }
        if path.is_cached {
            proxy.exchange(path.direction, &path.request, &path.response);
        }
        let properties = Properties::new().direction(path.direction).bytes(
            &["xds", "cluster_name"],
            "outbound|9080||productpage.default.svc.cluster.local",
        );
        // Once, so that the cluster is known.
        let stream = proxy.vm.open(&proxy.root, properties.clone());
        proxy.request(&stream, &Headers::new());
        proxy.vm.finish(&stream).expect("no trap");

        let stream = proxy.vm.open(&proxy.root, properties);
        let (result, instructions) = proxy.vm.measure(|vm| {
            vm.request_headers(&stream, path.request.clone())?;
            vm.response_headers(&stream, path.response.clone())?;
            vm.finish(&stream)
        });
        result.expect("no trap");
        println!("{}: {instructions} guest instructions", path.name);
        if instructions > path.ceiling {
            over.push(format!(
                "{}: {instructions}, ceiling {}",
                path.name, path.ceiling
            ));
        }
    }
    assert!(over.is_empty(), "{over:#?}");
}

#[test]
fn the_vm_starts_small() {
    let proxy = Proxy::of(&workload("local-v1"), &json!({}));
    let pages = proxy.vm.memory_pages();
    assert!(pages <= 20, "{pages} pages of linear memory");
}

#[test]
fn nothing_is_called_for_bodies_and_trailers() {
    let mut proxy = Proxy::plain("local");
    let stream = proxy.open(Direction::Inbound);
    proxy.request(&stream, &Headers::new());
    let (result, instructions) = proxy.vm.measure(|vm| {
        vm.request_body(&stream, b"body".as_slice(), false)?;
        vm.request_trailers(&stream, Headers::new())
    });
    result.expect("no trap");
    assert_eq!(instructions, 0);
}
