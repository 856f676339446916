//! Trust in peers: what a peer's connection must prove before its metadata are
//! accepted.

use serde::Deserialize;

/// What a peer's connection must prove.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// Nothing, as Istio's own exchange does.
    #[default]
    Any,
    /// A certificate.
    Mtls,
    /// A certificate whose URI SAN is `spiffe://TRUST-DOMAIN/ns/NS/sa/SA`, with
    /// NS the namespace that the metadata claims. It vouches for the namespace,
    /// not for the workload.
    Spiffe,
    /// No peer is trusted: the edge of the mesh.
    None,
}

/// Why a peer is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// `none`: no peer is.
    Nobody,
    /// `mtls`, `spiffe`: no certificate was presented.
    NoCertificate,
    /// `spiffe`: the certificate is for another namespace or trust domain, its
    /// SAN is not of that form, or the metadata claims no namespace.
    OtherIdentity,
}

/// Whether `uri_san` vouches for `namespace`, in one of `trust_domains` unless
/// that is empty.
#[must_use]
pub fn vouches(uri_san: &[u8], namespace: &[u8], trust_domains: &[String]) -> bool {
    let Some(uri) = uri_san.strip_prefix(b"spiffe://") else {
        return false;
    };
    let mut parts = uri.split(|byte| *byte == b'/');
    let trust_domain = parts.next().unwrap_or_default();
    let is_path = parts.next() == Some(b"ns")
        && parts.next() == Some(namespace)
        && parts.next() == Some(b"sa")
        && parts.next().is_some_and(|account| !account.is_empty())
        && parts.next().is_none();
    let mut listed = trust_domains.iter().map(String::as_bytes);
    is_path
        && !namespace.is_empty()
        && !trust_domain.is_empty()
        && (trust_domains.is_empty() || listed.any(|listed| listed == trust_domain))
        && std::str::from_utf8(uri_san).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_form_vouches() {
        let domains = ["cluster.local".to_owned()];
        assert!(vouches(
            b"spiffe://cluster.local/ns/shop/sa/pay",
            b"shop",
            &domains
        ));
        assert!(vouches(b"spiffe://other/ns/shop/sa/pay", b"shop", &[]));
        for (uri, namespace) in [
            ("spiffe://other/ns/shop/sa/pay", "shop"),
            ("spiffe://cluster.local/ns/shop/sa/pay", "bank"),
            ("spiffe://cluster.local/ns/shop/sa/pay", "shop/sa/pay"),
            ("spiffe://cluster.local/ns/shop/sa/", "shop"),
            ("spiffe://cluster.local/ns/shop/sa", "shop"),
            ("spiffe://cluster.local/ns/shop/sa/pay/x", "shop"),
            ("spiffe://cluster.local/ns//sa/pay", ""),
            ("spiffe://cluster.local//ns/shop/sa/pay", "shop"),
            ("SPIFFE://cluster.local/ns/shop/sa/pay", "shop"),
            ("https://cluster.local/ns/shop/sa/pay", "shop"),
            ("", "shop"),
        ] {
            assert!(
                !vouches(uri.as_bytes(), namespace.as_bytes(), &domains),
                "{uri}"
            );
        }
        assert!(!vouches(b"spiffe:///ns/shop/sa/pay", b"shop", &[]));
        assert!(!vouches(b"spiffe://\xff/ns/shop/sa/pay", b"shop", &[]));
    }
}
