//! Guest instructions and host calls of whole streams, by path and number of labels. They are the same in every run.

use anyhow::Result;
use wasm_host::cost::{Cost, Path};
use wasm_host::{Headers, Module, Properties, Settings, Vm};

use crate::bench::Bench;
use crate::plot::{Axis, Chart, Line, Scale};
use crate::report::Table;
use crate::sample::{LABELS, USUAL_LABELS, headers, pod};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let mut rows = Vec::new();
    let mut lines = Vec::new();
    for contender in bench.modules() {
        let module = Module::from_file(&contender.module)?;
        // What does nothing does not read labels either.
        let labels: &[usize] = if contender.is_noop {
            &[USUAL_LABELS]
        } else {
            &LABELS
        };
        for path in Path::ALL {
            bench.progress(format_args!("{}, {}", contender.name, path.name));
            let mut add = |labels: usize, name: &str, configuration: &str| -> Result<_> {
                let [(_, header), _] = headers(&pod("productpage-v1", labels)?);
                let Cost {
                    instructions,
                    host_calls,
                } = cost(&module, &path, labels, configuration)?;
                rows.push(vec![
                    contender.name.as_str().into(),
                    name.into(),
                    labels.into(),
                    header.len().into(),
                    instructions.into(),
                    host_calls.into(),
                ]);
                Ok((header.len() as f64, instructions as f64))
            };
            let points = labels.iter().map(|labels| add(*labels, path.name, "{}"));
            let points = points.collect::<Result<Vec<_>>>()?;
            if contender.is_noop {
                continue;
            }
            for (source, configuration) in Path::SOURCES.iter().filter(|_| path.is_cached) {
                let name = format!("{}; {source}", path.name);
                add(USUAL_LABELS, &name, configuration)?;
            }
            let name = format!("{}: {}", contender.name, path.name);
            lines.push(Line { name, points });
        }
    }
    bench.add_chart(&Chart::Lines {
        title: "Guest instructions of a stream, by the length of the peer's header",
        x: Axis {
            title: "bytes of x-envoy-peer-metadata",
            scale: Scale::Linear,
        },
        y: Axis {
            title: "guest instructions",
            scale: Scale::Logarithmic,
        },
        lines,
    })?;
    bench.add_table(Table {
        name: "counted",
        about: "guest instructions and host calls of a whole stream in a warm VM; exact, the same in every run",
        columns: &[
            "module",
            "path",
            "labels",
            "header bytes",
            "guest instructions",
            "host calls",
        ],
        rows,
    });
    Ok(())
}

pub(crate) fn cost(
    module: &Module,
    path: &Path,
    labels: usize,
    configuration: &str,
) -> Result<Cost> {
    let local = pod("local-v1", USUAL_LABELS)?;
    let local = wasm_host::Node::new(&local.id, &local.metadata);
    let settings = Settings {
        properties: Properties::new().xds_node(&local),
        ..Settings::default()
    };
    let mut vm = Vm::start(module, settings)?;
    let root = vm.configure(configuration)?;
    let headers_of = |name: &str| -> Headers {
        // The sample is part of the program: it has labels.
        pod(name, labels).map_or_else(|_| Headers::new(), |pod| Headers::from(headers(&pod)))
    };
    Ok(path.cost(&mut vm, &root, headers_of)?)
}
