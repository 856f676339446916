//! A sink that passes entries on one by one.

use std::sync::Arc;

use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::Identifier;

use crate::entry::Entry;
use crate::read::entries;
use crate::reporter::Reporter;
use crate::server::{Batch, Gone, Sink};

/// Passes each received entry to a function, one after the other.
#[derive(Debug)]
pub struct Each<F>(pub F);

impl<F: Fn(&Entry) + Send + Sync + 'static> Sink for Each<F> {
    type Source = Reporter;

    fn identify(&self, identifier: Identifier, first: Option<&Arc<Reporter>>) -> Reporter {
        Reporter::identified(identifier, first)
    }

    async fn take(&self, batch: Batch<Reporter>) -> Result<(), Gone> {
        let Self(each) = self;
        entries(&batch.source, batch.entries).iter().for_each(each);
        Ok(())
    }
}
