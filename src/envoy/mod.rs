//! The filter as Envoy loads it, and the only module that uses the SDK.

#[forbid(unsafe_code)]
mod host;
#[forbid(unsafe_code)]
mod http;
#[allow(unsafe_code)]
mod imports;
#[forbid(unsafe_code)]
mod logger;
#[forbid(unsafe_code)]
mod metrics;
#[forbid(unsafe_code)]
mod root;
#[forbid(unsafe_code)]
mod roots;
#[forbid(unsafe_code)]
mod tcp;

// The SDK's macro exports a function without documentation and calls one by `unsafe`.
#[allow(missing_docs, unreachable_pub, unsafe_code)]
mod start {
    use super::{logger, root::Root};

    proxy_wasm::main! {{
        logger::install();
        proxy_wasm::set_root_context(|id| Box::new(Root::new(id)));
    }}
}
