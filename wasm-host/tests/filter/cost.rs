//! What a request costs in the VM: guest instructions of a whole stream in a warm VM, from context to deletion. They are
//! counted, so the same module gives the same figures everywhere, and a regression names its path.

use crate::support::*;
use serde_json::{Value as Json, json};
use wasm_host::cost::{Cost, Path};
use wasm_host::{Direction, Headers};

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

/// 1.25 times what was reached, in the order of [`Path::ALL`]; see docs/cost.md.
const CEILINGS: [u64; 6] = [6_350, 7_700, 9_050, 170_000, 172_000, 5_000];

#[test]
fn guest_instructions_stay_below_their_ceilings() {
    let mut over = Vec::new();
    for (path, ceiling) in Path::ALL.into_iter().zip(CEILINGS) {
        let mut proxy = Proxy::of(&workload("local-v1"), &json!({}));
        let cost = path.cost(&mut proxy.vm, &proxy.root, |name| workload(name).headers());
        let Cost { instructions, .. } = cost.expect("no trap");
        println!("{}: {instructions} guest instructions", path.name);
        if instructions > ceiling {
            over.push(format!("{}: {instructions}, ceiling {ceiling}", path.name));
        }
    }
    assert!(over.is_empty(), "{over:#?}");
}

/// The most instructions and the exact host calls that each of [`Path::SOURCES`] adds to a stream. Up to 300 of the
/// instructions are the allocator's, which differ with all that was allocated before.
const ADDED: [(&str, [(u64, usize); 4]); 4] = [
    (
        "outbound, silent callee",
        [(300, 1), (4_600, 2), (300, 0), (2_000, 2)],
    ),
    (
        "inbound, peer cached",
        [(300, 1), (300, 0), (500, 1), (500, 1)],
    ),
    (
        "outbound, peer cached",
        [(300, 1), (300, 0), (500, 1), (500, 1)],
    ),
    (
        "inbound, silent caller",
        [(300, 1), (300, 0), (300, 0), (2_200, 4)],
    ),
];

/// No other source is asked for a peer that sent its metadata.
#[test]
fn other_sources_of_names_stay_below_their_ceilings() {
    let mut over = Vec::new();
    for (name, ceilings) in ADDED {
        let path = Path::ALL.into_iter().find(|path| path.name == name);
        let path = path.expect("a path");
        let cost = |configuration: &str| {
            let configuration = serde_json::from_str(configuration).expect("JSON");
            let mut proxy = Proxy::of(&workload("local-v1"), &configuration);
            let cost = path.cost(&mut proxy.vm, &proxy.root, |name| workload(name).headers());
            cost.expect("no trap")
        };
        let without = cost("{}");
        for ((source, configuration), ceiling) in Path::SOURCES.into_iter().zip(ceilings) {
            let with = cost(configuration);
            let added = (
                with.instructions.saturating_sub(without.instructions),
                with.host_calls - without.host_calls,
            );
            println!("{name}, {source}: {with:?}, adds {added:?} to {without:?}");
            if added.0 > ceiling.0 || added.1 != ceiling.1 {
                over.push(format!(
                    "{name}, {source}: adds {added:?}, ceiling {ceiling:?}"
                ));
            }
        }
    }
    assert!(over.is_empty(), "{over:#?}");
}

#[test]
fn the_module_is_small() {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../dist/metadata_exchange.wasm"
    );
    let bytes = std::fs::metadata(file).expect("the module").len();
    println!("module: {bytes} bytes");
    assert!(bytes <= 306_000, "{bytes} bytes");
}

#[test]
fn the_vm_starts_small() {
    let proxy = Proxy::of(&workload("local-v1"), &json!({}));
    let pages = proxy.vm.memory_pages();
    assert!(pages <= 18, "{pages} pages of linear memory");
}

#[test]
fn bodies_and_trailers_cause_no_callbacks() {
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
