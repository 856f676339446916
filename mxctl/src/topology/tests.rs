use std::borrow::Cow;

use access_log::{Named, Protocol};
use serde_json::{Value, json};

use super::*;

/// An entry of `log` by the node `id` of the service `name`.
fn entry(log: &str, id: &str, name: &str, state: &Value) -> Entry {
    Entry::of_line(
        &json!({
            "version": 1,
            "reporter": { "log": log, "id": id, "metadata": metadata(name) },
            "protocol": "http",
            "status": 200,
            "duration_us": 1500,
            "state": state,
        })
        .to_string(),
    )
    .unwrap()
}

fn metadata(name: &str) -> Value {
    json!({
        "NAME": format!("{name}-1"), "NAMESPACE": "shop", "LABELS": { "app": name },
        "OWNER": format!("kubernetes://apis/apps/v1/namespaces/shop/deployments/{name}"),
    })
}

fn sidecar(name: &str) -> String {
    format!("sidecar~10.0.0.1~{name}-1.shop~shop.svc.cluster.local")
}

fn peer(key: &str, name: &str) -> Value {
    json!({
        key: { "kind": "flat", "metadata": metadata(name) },
        format!("{key}_id"): { "kind": "id", "id": sidecar(name) },
    })
}

fn both(one: Value, other: Value) -> Value {
    let mut all = one;
    let Value::Object(other) = other else {
        panic!("not an object")
    };
    all.as_object_mut().unwrap().extend(other);
    all
}

fn graph(reading: Reading, entries: &[Entry]) -> Snapshot {
    let mut topology = Topology::new(Naming::default(), reading);
    for entry in entries {
        topology.record(entry);
    }
    topology.snapshot()
}

/// `from -> to (seen by): calls of client and server`
fn edges(snapshot: &Snapshot) -> Vec<String> {
    let name = |number: usize| &snapshot.workloads[number].name;
    let calls = |tally: &Option<TallyView>| tally.as_ref().map_or(0, |tally| tally.calls);
    let line = |edge: &EdgeView| {
        let (client, server) = (calls(&edge.client), calls(&edge.server));
        format!("{} -> {} {client}/{server}", name(edge.from), name(edge.to))
    };
    snapshot.edges.iter().map(line).collect()
}

fn notes(snapshot: &Snapshot) -> String {
    let line = |note: &NoteView| format!("{} x {}\n", note.count, note.note);
    snapshot.notes.iter().map(line).collect()
}

/// Like a VM that is restarted under the same id.
#[test]
fn a_workload_has_its_latest_labels() {
    let called = |version: &str, more: &str| {
        let mut state = peer("wasm.downstream_peer", "vm");
        let labels = json!({ "app": "vm", "version": version, more: "x" });
        state["wasm.downstream_peer"]["metadata"]["LABELS"] = labels;
        entry("b/inbound", &sidecar("b"), "b", &state)
    };
    let snapshot = graph(Reading::Mesh, &[called("v1", "one"), called("v2", "two")]);
    let vm = snapshot.workloads.iter().find(|one| one.name == "vm.shop");
    let labels = &vm.unwrap().instances[0].metadata["LABELS"];
    assert_eq!(labels, &json!({ "app": "vm", "version": "v2", "two": "x" }));
}

#[test]
fn both_sides_of_a_call_are_one_edge() {
    let entries = [
        entry(
            "a/outbound",
            &sidecar("a"),
            "a",
            &peer("wasm.upstream_peer", "b"),
        ),
        entry(
            "b/inbound",
            &sidecar("b"),
            "b",
            &peer("wasm.downstream_peer", "a"),
        ),
    ];
    let snapshot = graph(Reading::Mesh, &entries);
    assert_eq!(edges(&snapshot), ["a.shop -> b.shop 1/1"]);
    assert_eq!(snapshot.edges[0].seen_by(), "both");
    assert_eq!(snapshot.workloads[0].kind, Kind::Pod);
    let latency = snapshot.edges[0].main().unwrap().latency_ms.unwrap();
    assert!((latency.p50 - 1.5).abs() < 0.015, "{latency:?}");
    assert_eq!(
        edges(&graph(Reading::Skywalking, &entries)),
        ["a.shop -> b.shop 1/1"]
    );
}

#[test]
fn a_recorded_local_node_makes_no_edge_here_but_one_in_skywalking() {
    let state = both(
        peer("wasm.downstream_peer", "a"),
        peer("wasm.upstream_peer", "b"),
    );
    let entries = [entry("any", &sidecar("b"), "b", &state)];
    assert_eq!(
        edges(&graph(Reading::Mesh, &entries)),
        ["a.shop -> b.shop 0/1"]
    );
    let skywalking = graph(Reading::Skywalking, &entries);
    assert_eq!(
        edges(&skywalking),
        ["a.shop -> b.shop 0/1", "b.shop -> b.shop 1/0"]
    );
    assert!(notes(&skywalking).contains("1 x an edge from an instance to itself"));
}

#[test]
fn the_direction_is_derived_from_a_lone_local_node() {
    let inbound = entry("x", &sidecar("b"), "b", &peer("wasm.upstream_peer", "b"));
    assert_eq!(
        edges(&graph(Reading::Mesh, &[inbound])),
        ["unknown -> b.shop 0/1"]
    );
    let itself = entry(
        "x/outbound",
        &sidecar("b"),
        "b",
        &peer("wasm.upstream_peer", "b"),
    );
    assert_eq!(
        edges(&graph(Reading::Mesh, &[itself])),
        ["b.shop -> b.shop 1/0"]
    );
}

#[test]
fn a_gateway_has_both_edges() {
    let id = "router~10.0.0.9~gw-1.shop~shop.svc.cluster.local";
    let state = both(
        peer("wasm.downstream_peer", "a"),
        peer("wasm.upstream_peer", "b"),
    );
    let entries = [entry("gw", id, "gw", &state)];
    for reading in [Reading::Mesh, Reading::Skywalking] {
        let snapshot = graph(reading, &entries);
        assert_eq!(
            edges(&snapshot),
            ["a.shop -> gw.shop 0/1", "gw.shop -> b.shop 1/0"]
        );
        assert_eq!(snapshot.workloads[2].kind, Kind::Gateway);
    }
}

#[test]
fn a_gateway_without_a_caller_has_no_unknown_caller() {
    let id = "router~10.0.0.9~gw-1.shop~shop.svc.cluster.local";
    let called = entry("gw", id, "gw", &peer("wasm.upstream_peer", "b"));
    let expected = ["gw.shop -> b.shop 1/0", "unknown -> gw.shop 0/1"];
    let snapshot = graph(Reading::Mesh, std::slice::from_ref(&called));
    assert_eq!(edges(&snapshot), expected);
    assert_eq!(snapshot.workloads[2].kind, Kind::Unknown);
    let skywalking = graph(Reading::Skywalking, &[called]);
    assert_eq!(
        edges(&skywalking),
        ["gw.shop -> b.shop 1/0", "UNKNOWN -> gw.shop 0/1"]
    );
    // Without any filter state, SkyWalking drops the entry, as it does
    // everywhere.
    let bare = entry("gw", id, "gw", &json!({}));
    let skywalking = graph(Reading::Skywalking, std::slice::from_ref(&bare));
    assert_eq!(edges(&skywalking), [""; 0]);
    assert!(notes(&skywalking).contains("1 x dropped by mx-mesh"));
    assert_eq!(
        edges(&graph(Reading::Mesh, &[bare])),
        ["unknown -> gw.shop 0/1"]
    );
}

#[test]
fn without_a_peer_the_unknown_side_is_derived_from_cluster_or_log() {
    let mut out = entry("x", &sidecar("a"), "a", &json!({}));
    out.upstream_cluster = "outbound|443||api.example.com".to_owned();
    let mut inn = entry("x", &sidecar("a"), "a", &json!({}));
    inn.upstream_cluster = "inbound|9080||".to_owned();
    let lost = entry("x", &sidecar("a"), "a", &json!({}));
    let snapshot = graph(Reading::Mesh, &[out, inn, lost]);
    assert_eq!(
        edges(&snapshot),
        ["a.shop -> api.example.com 1/0", "unknown -> a.shop 0/1"]
    );
    assert!(notes(&snapshot).starts_with("1 x no peer, and neither"));
}

#[test]
fn an_unanswered_call_belongs_to_the_service_of_its_cluster() {
    let call = |cluster: &str, status: u32, state: Value| {
        let mut call = entry("a/outbound", &sidecar("a"), "a", &state);
        call.upstream_cluster = cluster.to_owned();
        call.status = status;
        if status == 503 {
            call.flags.push(Cow::Borrowed("UF"));
        }
        call
    };
    let answered = |cluster: &str, by: &str| call(cluster, 200, peer("wasm.upstream_peer", by));
    let silent = |cluster: &str, status| call(cluster, status, json!({}));
    let snapshot = graph(
        Reading::Mesh,
        &[
            silent("outbound|80||b", 0),
            answered("outbound|80||b", "b"),
            silent("outbound|80||b", 503),
            // A callee without the exchange answered.
            silent("outbound|80||b", 200),
            answered("outbound|80||c-or-d", "c"),
            answered("outbound|80||c-or-d", "d"),
            silent("outbound|80||c-or-d", 503),
            silent("outbound|80||nobody", 503),
        ],
    );
    assert_eq!(
        edges(&snapshot),
        [
            "a.shop -> b.shop 3/0",
            "a.shop -> c.shop 1/0",
            "a.shop -> d.shop 1/0",
            "a.shop -> b 1/0",
            "a.shop -> c-or-d 1/0",
            "a.shop -> nobody 1/0",
        ]
    );
    let client = snapshot.edges[0].client.as_ref().unwrap();
    assert_eq!((client.errors, client.calls), (2, 3));
}

#[test]
fn both_key_sets_in_an_entry_count_once_here_and_twice_in_skywalking() {
    let newer = json!({ "upstream_peer": { "kind": "struct", "metadata": {
        "name": "b-1", "namespace": "shop", "labels": { "app": "b" } } } });
    let entries = [entry(
        "a/outbound",
        &sidecar("a"),
        "a",
        &both(peer("wasm.upstream_peer", "b"), newer.clone()),
    )];
    assert_eq!(
        edges(&graph(Reading::Mesh, &entries)),
        ["a.shop -> b.shop 1/0"]
    );
    let skywalking = graph(Reading::Skywalking, &entries);
    assert_eq!(edges(&skywalking), ["a.shop -> b.shop 2/0"]);
    assert!(
        notes(&skywalking).contains("1 x counted twice"),
        "{}",
        notes(&skywalking)
    );
    let entries = [entry("a/outbound", &sidecar("a"), "a", &newer)];
    assert_eq!(
        edges(&graph(Reading::Mesh, &entries)),
        ["a.shop -> b.shop 1/0"]
    );
}

#[test]
fn an_empty_peer_is_the_nameless_node_of_skywalking() {
    let empty = json!({ "wasm.upstream_peer": { "kind": "flat", "metadata": {} } });
    let skywalking = graph(
        Reading::Skywalking,
        &[entry("x", &sidecar("a"), "a", &empty)],
    );
    assert_eq!(edges(&skywalking), ["a.shop -> -.- 1/0"]);
    assert!(notes(&skywalking).contains("drawn as -.-"));
}

#[test]
fn broken_state_is_noted() {
    let broken = json!({ "wasm.upstream_peer":
        { "kind": "broken", "reason": "not a FlatNode", "bytes": 3 } });
    let entries = [entry("a/outbound", &sidecar("a"), "a", &broken)];
    let snapshot = graph(Reading::Mesh, &entries);
    assert!(notes(&snapshot).contains("wasm.upstream_peer is not a peer: not a FlatNode"));
    let skywalking = graph(Reading::Skywalking, &entries);
    assert!(notes(&skywalking).contains("an error in its log, and no edge"));
    assert_eq!(edges(&skywalking), [""; 0]);
}

#[test]
fn statuses_are_errors_of_the_server_or_of_the_client() {
    let entries = [0, 200, 302, 404, 429, 500, 503].map(|status| {
        let mut entry = entry(
            "a/outbound",
            &sidecar("a"),
            "a",
            &peer("wasm.upstream_peer", "b"),
        );
        entry.status = status;
        entry
    });
    let snapshot = graph(Reading::Mesh, &entries);
    let tally = snapshot.edges[0].main().unwrap();
    assert_eq!((tally.calls, tally.errors, tally.client_errors), (7, 3, 2));
}

#[test]
fn connections_have_no_latency_and_intermediate_entries_do_not_count() {
    let call = || {
        entry(
            "a/outbound",
            &sidecar("a"),
            "a",
            &peer("wasm.upstream_peer", "b"),
        )
    };
    let mut connection = call();
    connection.protocol = Protocol::Tcp;
    connection.flags = vec!["UF".into()];
    let mut periodic = call();
    periodic.intermediate = true;
    let snapshot = graph(Reading::Mesh, &[connection, periodic]);
    let tally = snapshot.edges[0].main().unwrap();
    let tcp = tally.tcp.unwrap();
    assert_eq!((tally.calls, tally.errors), (0, 0));
    assert_eq!((tcp.connections, tcp.errors), (Some(1), Some(1)));
    // No entry of an open connection has an id.
    assert_eq!(tcp.open, None);
    assert!(tally.latency_ms.is_none());
}

/// An entry of the connection `id`, with its bytes so far.
fn connection(id: &str, is_end: bool, [received, sent]: [u64; 2], callee: Option<&str>) -> Entry {
    let state = callee.map_or_else(|| json!({}), |callee| peer("wasm.upstream_peer", callee));
    let mut entry = entry("a/outbound", &sidecar("a"), "a", &state);
    (entry.protocol, entry.status) = (Protocol::Tcp, 0);
    entry.upstream_cluster = "outbound|5432||db".to_owned();
    (entry.stream_id, entry.intermediate) = (id.to_owned(), !is_end);
    (entry.received_bytes, entry.sent_bytes) = (received, sent);
    entry
}

/// `from -> to: connections/open, received/sent` of the client
fn connections(snapshot: &Snapshot) -> Vec<String> {
    let name = |number: usize| &snapshot.workloads[number].name;
    let line = |edge: &EdgeView| {
        let tcp = edge.client.as_ref().unwrap().tcp.unwrap();
        let number = |count: Option<u64>| count.map_or("-".to_owned(), |count| count.to_string());
        format!(
            "{} -> {}: {}/{}, {}/{}",
            name(edge.from),
            name(edge.to),
            number(tcp.connections),
            number(tcp.open),
            tcp.received_bytes,
            tcp.sent_bytes
        )
    };
    snapshot.edges.iter().map(line).collect()
}

#[test]
fn a_connection_counts_once_however_often_it_is_logged() {
    let all = [
        // Connected, before anything names the callee.
        connection("one", false, [0, 0], None),
        connection("one", false, [5, 50], Some("b")),
        connection("two", false, [0, 0], None),
        connection("one", false, [7, 70], Some("b")),
        connection("one", true, [10, 100], Some("b")),
        connection("two", false, [1, 2], Some("b")),
        // An old Envoy logs neither ids nor types.
        connection("", true, [1000, 2000], Some("b")),
    ];
    let after = |count: usize| connections(&graph(Reading::Mesh, &all[..count]));
    assert_eq!(after(1), ["a.shop -> db: 0/1, 0/0"]);
    assert_eq!(after(2), ["a.shop -> b.shop: 0/1, 5/50"]);
    assert_eq!(
        after(3),
        ["a.shop -> b.shop: 0/1, 5/50", "a.shop -> db: 0/1, 0/0"]
    );
    assert_eq!(
        after(5),
        ["a.shop -> b.shop: 1/0, 10/100", "a.shop -> db: 0/1, 0/0"]
    );
    assert_eq!(after(6), ["a.shop -> b.shop: 1/1, 11/102"]);
    let last = graph(Reading::Mesh, &all);
    assert_eq!(connections(&last), ["a.shop -> b.shop: 2/1, 1011/2102"]);
    let names: Vec<_> = last.workloads.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["a.shop", "b.shop"]);
    assert_eq!(edges(&last), ["a.shop -> b.shop 0/0"]);
    assert_eq!(notes(&last), "");
}

/// Its `TCPLogEntry2MetricsAdapter` takes those of each entry, whether the connection has ended or not.
#[test]
fn skywalking_adds_the_bytes_of_every_entry() {
    let all = [
        connection("one", false, [5, 50], Some("b")),
        connection("one", true, [10, 100], Some("b")),
    ];
    let snapshot = graph(Reading::Skywalking, &all);
    assert_eq!(connections(&snapshot), ["a.shop -> b.shop: -/-, 15/150"]);
    let note = "1 x an entry of an open connection: its bytes so far are added again";
    assert!(notes(&snapshot).contains(note), "{}", notes(&snapshot));
}

#[test]
fn requests_and_connections_of_an_edge_are_not_mixed() {
    let call = entry(
        "a/outbound",
        &sidecar("a"),
        "a",
        &peer("wasm.upstream_peer", "b"),
    );
    let all = [connection("", true, [10, 100], Some("b")), call];
    let snapshot = graph(Reading::Mesh, &all);
    let tally = snapshot.edges[0].main().unwrap();
    let tcp = tally.tcp.unwrap();
    assert_eq!((tally.calls, tcp.connections), (1, Some(1)));
    assert_eq!((tcp.received_bytes, tcp.sent_bytes), (10, 100));
    assert!(tally.latency_ms.is_some());
}

#[test]
fn unlimited_open_connections_use_limited_memory() {
    let mut topology = Topology::new(Naming::default(), Reading::Mesh);
    for number in 0..17_000 {
        topology.record(&connection(&number.to_string(), false, [1, 1], Some("b")));
    }
    let snapshot = topology.snapshot();
    assert_eq!(
        connections(&snapshot),
        ["a.shop -> b.shop: 0/16384, 16384/16384"]
    );
    let note = "616 x more than 16384 open connections";
    assert!(notes(&snapshot).starts_with(note), "{}", notes(&snapshot));
}

#[test]
fn pods_vms_and_gateways_are_distinguished() {
    let kind = |id: Option<&str>, metadata: Value| {
        let metadata = Cow::Owned(metadata);
        kind_of(&Named { id, metadata }).1
    };
    assert_eq!(kind(Some("router~x"), json!({})), Kind::Gateway);
    assert_eq!(kind(Some("sidecar~x"), metadata("a")), Kind::Pod);
    assert_eq!(kind(None, json!({ "APP_CONTAINERS": "a" })), Kind::Pod);
    let no_sign = json!({ "NAME": "vm-1" });
    assert_eq!(kind(Some("sidecar~x"), no_sign.clone()), Kind::Vm);
    assert_eq!(kind(None, no_sign), Kind::Unknown);
    let group = "kubernetes://apis/networking.istio.io/v1alpha3/namespace/default/workloadgroups/a";
    assert_eq!(
        kind(None, json!({ "OWNER": group, "APP_CONTAINERS": "x" })),
        Kind::Vm
    );
}

#[test]
fn evidence_overrides_a_guess_and_a_service_may_have_both_kinds() {
    let guess = json!({ "NAME": "b-1", "NAMESPACE": "shop", "LABELS": { "app": "b" } });
    let seen = |metadata: &Value| {
        let state = json!({
            "wasm.upstream_peer": { "kind": "flat", "metadata": metadata },
            "wasm.upstream_peer_id": { "kind": "id", "id": sidecar("b") },
        });
        entry("a/outbound", &sidecar("a"), "a", &state)
    };
    let kind = |entries: &[Entry]| graph(Reading::Mesh, entries).workloads[1].kind;
    assert_eq!(kind(&[seen(&guess)]), Kind::Vm);
    let own = entry(
        "b/inbound",
        &sidecar("b"),
        "b",
        &peer("wasm.downstream_peer", "a"),
    );
    assert_eq!(kind(&[seen(&guess), own]), Kind::Pod);
    let mut vm = guess.clone();
    vm["NAME"] = json!("b-vm");
    assert_eq!(kind(&[seen(&vm), seen(&metadata("b"))]), Kind::Mixed);
    // By its endpoint, which has no id.
    let mut by_endpoint = seen(&vm);
    by_endpoint.state.remove("wasm.upstream_peer_id");
    assert_eq!(kind(&[by_endpoint.clone()]), Kind::Unknown);
    assert_eq!(kind(&[by_endpoint, seen(&metadata("b"))]), Kind::Pod);
}

#[test]
fn unlimited_names_use_limited_memory() {
    let mut topology = Topology::new(Naming::default(), Reading::Mesh);
    for number in 0..3000 {
        let name = format!("n{number}");
        let state = peer("wasm.upstream_peer", &name);
        topology.record(&entry("a/outbound", &sidecar("a"), "a", &state));
    }
    let snapshot = topology.snapshot();
    assert_eq!(snapshot.workloads.len(), 2048);
    assert_eq!(snapshot.edges.len(), 2047);
    assert_eq!(
        notes(&snapshot),
        "953 x more than 2048 workloads: further ones are left out\n"
    );
}

#[test]
fn large_metadata_and_names_use_limited_memory() {
    let mut topology = Topology::new(Naming::default(), Reading::Mesh);
    let long = "ä".repeat(100_000);
    let node = json!({ "NAME": long, "NAMESPACE": "shop", "LABELS": { "app": long },
        "OWNER": long, "CLUSTER_ID": "c" });
    let state = json!({
        "wasm.upstream_peer": { "kind": "flat", "metadata": node },
        "wasm.upstream_peer_id": { "kind": "id", "id": long },
        "wasm.downstream_peer": { "kind": "broken", "reason": long, "bytes": 3 },
    });
    let mut called = entry("a/outbound", &sidecar("a"), "a", &state);
    called.upstream_cluster = format!("outbound|80||{long}");
    topology.record(&called);
    let mut meant = entry("a/outbound", &sidecar("a"), "a", &json!({}));
    (meant.upstream_cluster, meant.status) = (called.upstream_cluster, 0);
    topology.record(&meant);
    let snapshot = topology.snapshot();
    let all = json!(snapshot).to_string();
    // Both are calls of the one service.
    assert_eq!(snapshot.edges.len(), 1, "{}", all.len());
    let instance = &snapshot.workloads[1].instances[0];
    assert_eq!(
        json!(instance.metadata),
        json!({ "NAMESPACE": "shop", "CLUSTER_ID": "c" })
    );
    assert!(all.len() < 5000, "{}", all.len());
    let note = "1 x metadata of more than 8 KiB: only part of it is kept";
    assert!(notes(&snapshot).contains(note), "{}", notes(&snapshot));
}

#[test]
fn unlimited_instances_use_limited_memory() {
    let mut topology = Topology::new(Naming::default(), Reading::Mesh);
    for workload in 0..300 {
        for instance in 0..60 {
            let mut metadata = metadata(&format!("w{workload}"));
            metadata["NAME"] = json!(format!("i{instance}"));
            let state = json!({ "wasm.upstream_peer": { "kind": "flat", "metadata": metadata } });
            topology.record(&entry("a/outbound", &sidecar("a"), "a", &state));
        }
    }
    let snapshot = topology.snapshot();
    let kept = snapshot.workloads.iter().map(|one| one.instances.len());
    assert_eq!(snapshot.workloads.len(), 301);
    assert_eq!(kept.sum::<usize>(), 16_384);
    let further = snapshot.workloads.iter().map(|one| one.further_instances);
    assert_eq!(further.sum::<u64>(), 300 * 60 + 1 - 16_384);
}

#[test]
fn skywalking_names_peers_by_the_fields_it_reads() {
    let naming = "serviceName: ${OWNER}.${NAMESPACE}\nserviceInstanceName: ${NAME}";
    let mut topology = Topology::new(Naming::of_yaml(naming).unwrap(), Reading::Skywalking);
    let state = peer("wasm.upstream_peer", "b");
    topology.record(&entry("x", &sidecar("a"), "a", &state));
    let snapshot = topology.snapshot();
    assert_eq!(snapshot.workloads[0].name, "-.shop");
    // What it runs on is still shown.
    assert_eq!(snapshot.workloads[0].kind, Kind::Pod);
}

/// An entry of a reporter with this identifier.
fn reported(reporter: &Value) -> Entry {
    let line = json!({
        "version": 1, "reporter": reporter, "protocol": "http", "status": 200,
        "state": peer("wasm.upstream_peer", "b"),
    });
    Entry::of_line(&line.to_string()).unwrap()
}

#[test]
fn reporters_without_name_are_named_from_their_id() {
    let of_id = |id: &str| reported(&json!({ "id": id, "metadata": {} }));
    let entries = [
        of_id("sidecar~10.0.0.1~pay-1.shop~shop.svc.cluster.local"),
        of_id("sidecar~10.0.0.2~pay-2.shop~shop.svc.cluster.local"),
        of_id("envoy-on-a-vm"),
        reported(&json!({
            "id": "sidecar~10.0.0.3~cart-1.shop~shop.svc.cluster.local",
            "metadata": { "LABELS": { "app": "cart" } },
        })),
        reported(&json!({
            "id": "sidecar~10.0.0.4~cart-2.shop~shop.svc.cluster.local",
            "metadata": { "LABELS": { "app": "cart" } },
        })),
    ];
    let snapshot = graph(Reading::Mesh, &entries);
    let names: Vec<_> = snapshot
        .workloads
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "b.shop",
            "cart.shop",
            "envoy-on-a-vm.-",
            "pay-1.shop",
            "pay-2.shop"
        ]
    );
    let cart = &snapshot.workloads[1].instances;
    let cart: Vec<_> = cart.iter().map(|instance| instance.name.as_str()).collect();
    assert_eq!(cart, ["cart-1", "cart-2"]);
}

#[test]
fn a_stream_without_identifier_has_an_unknown_reporter() {
    for reporter in [json!({}), json!({ "log": "a/outbound", "metadata": {} })] {
        let snapshot = graph(Reading::Mesh, &[reported(&reporter)]);
        assert_eq!(snapshot.edges.len(), 1);
        let caller = &snapshot.workloads[snapshot.edges[0].from];
        assert_eq!(
            (caller.name.as_str(), caller.kind),
            ("unknown reporter", Kind::Unknown)
        );
    }
}

#[test]
fn only_skywalking_takes_dashes_as_a_name() {
    let entry = reported(&json!({ "log": "a/outbound" }));
    let has_dashes = |reading| {
        let snapshot = graph(reading, std::slice::from_ref(&entry));
        snapshot
            .workloads
            .iter()
            .any(|workload| workload.name == "-.-")
    };
    assert!(!has_dashes(Reading::Mesh));
    assert!(has_dashes(Reading::Skywalking));
}

#[test]
fn skywalking_uses_the_first_identifier_of_a_stream() {
    let mut later = entry("x", &sidecar("b"), "b", &peer("wasm.upstream_peer", "c"));
    let mut reporter = (*later.reporter).clone();
    let first = entry("x", &sidecar("a"), "a", &json!({})).reporter;
    reporter.first = Some(first);
    later.reporter = reporter.into();
    let entries = [later];
    let read = |reading| edges(&graph(reading, &entries));
    assert_eq!(read(Reading::Mesh), ["b.shop -> c.shop 1/0"]);
    assert_eq!(read(Reading::Skywalking), ["a.shop -> c.shop 1/0"]);
}

#[test]
fn skywalking_does_not_count_connections_as_calls() {
    let mut connection = entry("x", &sidecar("a"), "a", &peer("wasm.upstream_peer", "b"));
    connection.protocol = Protocol::Tcp;
    let entries = [connection];
    for (reading, count) in [(Reading::Mesh, Some(1)), (Reading::Skywalking, None)] {
        let snapshot = graph(reading, &entries);
        assert_eq!(edges(&snapshot), ["a.shop -> b.shop 0/0"]);
        let client = snapshot.edges[0].client.as_ref().unwrap();
        assert_eq!(client.tcp.unwrap().connections, count);
        assert_eq!(client.success_rate, None);
    }
}

/// There, an entry in mid-stream counts as a call, and one without a start time
/// does not.
#[test]
fn skywalking_counts_intermediate_entries_and_skips_those_without_start() {
    let call = || entry("x", &sidecar("a"), "a", &peer("wasm.upstream_peer", "b"));
    let (mut midst, mut startless) = (call(), call());
    midst.intermediate = true;
    startless.startless = true;
    let snapshot = graph(Reading::Skywalking, &[call(), midst, startless]);
    assert_eq!(edges(&snapshot), ["a.shop -> b.shop 2/0"]);
    assert!(notes(&snapshot).contains("1 x dropped: an entry without a start time"));
}
