//! x
#![allow(warnings)]
use serde_json::json;
use std::sync::atomic::Ordering::Relaxed;
use wasm_host::*;
fn main() {
    let m = Module::from_file(std::path::Path::new(&std::env::args().nth(1).unwrap())).unwrap();
    let which: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let step: u64 = std::env::args().nth(3).unwrap().parse().unwrap();
    let file = std::fs::read("testdata/vectors/k8s_pod_client.json").unwrap();
    let vector: serde_json::Value = serde_json::from_slice(&file).unwrap();
    use base64::Engine as _;
    use prost::Message as _;
    let node = |name: &str| {
        let mut md = vector["node"]["metadata"].clone();
        md["NAME"] = json!(format!("{name}-84975bc778-pxz2w"));
        Node::new(
            &format!(
                "sidecar~10.52.0.34~{name}-84975bc778-pxz2w.default~default.svc.cluster.local"
            ),
            &md,
        )
    };
    let headers = |name: &str| {
        let n = node(name);
        let mut f = n.metadata.clone();
        let keep = [
            "APP_CONTAINERS",
            "CLUSTER_ID",
            "INSTANCE_IPS",
            "ISTIO_VERSION",
            "LABELS",
            "MESH_ID",
            "NAME",
            "NAMESPACE",
            "OWNER",
            "PLATFORM_METADATA",
            "WORKLOAD_NAME",
        ];
        f.fields.retain(|k, _| keep.contains(&k.as_str()));
        Headers::from([
            (
                "x-envoy-peer-metadata",
                base64::prelude::BASE64_STANDARD.encode(f.encode_to_vec()),
            ),
            ("x-envoy-peer-metadata-id", n.id.clone()),
        ])
    };
    let default = wasm_host::FUEL.load(Relaxed);
    let mut n = step;
    loop {
        wasm_host::FUEL.store(default, Relaxed);
        let settings = Settings {
            properties: Properties::new().xds_node(&node("local-v1")),
            ..Settings::default()
        };
        let mut vm = Vm::start(&m, settings).unwrap();
        let root = vm.configure("{}").unwrap();
        let dir = if which % 2 == 0 {
            Direction::Inbound
        } else {
            Direction::Outbound
        };
        let run = |vm: &mut Vm, told: Headers, fuel: Option<u64>| -> Result<(), Error> {
            let [rq, rs] = if dir == Direction::Inbound {
                [told, Headers::new()]
            } else {
                [Headers::new(), told]
            };
            let props = Properties::new().direction(dir).bytes(
                &["xds", "cluster_name"],
                "outbound|9080||productpage.default.svc.cluster.local",
            );
            let s = vm.open(&root, props);
            if dir == Direction::Inbound {
                if let Some(f) = fuel {
                    wasm_host::FUEL.store(f, Relaxed);
                }
            }
            vm.request_headers(&s, rq)?;
            if let Some(f) = fuel {
                if dir != Direction::Inbound {
                    wasm_host::FUEL.store(f, Relaxed);
                    vm.response_headers(&s, rs)?;
                }
            } else {
                vm.response_headers(&s, rs)?;
                vm.finish(&s)?;
            }
            Ok(())
        };
        for o in 0..30 {
            run(&mut vm, headers(&format!("other-{o}")), None).unwrap();
        }
        if which < 2 {
            run(&mut vm, headers("productpage-v1"), None).unwrap();
        }
        match run(&mut vm, headers("productpage-v1"), Some(n)) {
            Ok(()) => break,
            Err(e) => {
                use std::error::Error as _;
                let mut t = format!("{e:?}");
                println!("SAMPLE {n}\n{t}");
            }
        }
        n += step;
    }
    println!("END {n}");
}
