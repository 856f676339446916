//! Trust in peers: what a peer's connection must prove before its metadata is
//! accepted.

use serde::Deserialize;

use crate::peer::Field;

/// What a peer's connection must prove.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// Nothing, as Istio's own exchange does.
    #[default]
    Any,
    /// A certificate.
    Mtls,
    /// A certificate whose URI SAN matches a [`SpiffePattern`], with every field
    /// of the pattern equal to what the metadata claims. It vouches for these
    /// fields, not for others.
    Spiffe,
    /// No peer is trusted: the edge of the mesh.
    None,
}

impl Trust {
    /// Whether it needs a certificate.
    #[must_use]
    pub fn needs_certificate(self) -> bool {
        matches!(self, Self::Mtls | Self::Spiffe)
    }
}

/// Why a peer is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// `none`: no peer is.
    Nobody,
    /// `mtls`, `spiffe`: no certificate was presented.
    NoCertificate,
    /// `spiffe`: the certificate is for another identity or trust domain, its
    /// SAN matches no pattern, or the metadata lacks a field of the pattern.
    OtherIdentity,
    /// `any`: no certificate was presented to a listener without direction.
    NoDirection,
}

/// The form of a mesh's SPIFFE IDs, such as
/// `spiffe://{trust_domain}/ns/{NAMESPACE}/sa/{_}`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct SpiffePattern(Vec<Segment>);

/// What stands between slashes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// This text.
    Exact(String),
    /// Any text: `{_}`, or `{trust_domain}` at the beginning.
    Any,
    /// A field of the peer.
    Field(Field),
}

/// The fields that a pattern can have.
const FIELDS: [Field; 5] = [
    Field::ClusterId,
    Field::MeshId,
    Field::Name,
    Field::Namespace,
    Field::WorkloadName,
];

const SCHEME: &str = "spiffe://";

impl SpiffePattern {
    /// The form of Istio: it has the namespace. The service account is not the
    /// workload.
    #[must_use]
    pub fn istio() -> Self {
        let exact = |text: &str| Segment::Exact(text.to_owned());
        Self(vec![
            Segment::Any,
            exact("ns"),
            Segment::Field(Field::Namespace),
            exact("sa"),
            Segment::Any,
        ])
    }

    /// Reads a pattern; `None` if it is malformed, or has no field.
    #[must_use]
    pub fn parse(pattern: &str) -> Option<Self> {
        let segments = pattern.strip_prefix(SCHEME)?.split('/').enumerate();
        let segments = segments.map(|(index, segment)| {
            let name = segment
                .strip_prefix('{')
                .and_then(|name| name.strip_suffix('}'));
            match name {
                Some("_") => Some(Segment::Any),
                Some("trust_domain") if index == 0 => Some(Segment::Any),
                Some(name) => {
                    let field = Field::of_key(name).filter(|field| FIELDS.contains(field));
                    field.map(Segment::Field)
                }
                None if segment.is_empty() || segment.contains(['{', '}']) => None,
                None => Some(Segment::Exact(segment.to_owned())),
            }
        });
        let pattern = Self(segments.collect::<Option<_>>()?);
        (pattern.0.len() > 1 && pattern.fields().next().is_some()).then_some(pattern)
    }

    /// The fields that it has.
    pub fn fields(&self) -> impl Iterator<Item = Field> {
        self.0.iter().filter_map(|segment| match segment {
            Segment::Field(field) => Some(*field),
            Segment::Exact(_) | Segment::Any => None,
        })
    }

    /// Whether its fields name a workload.
    #[must_use]
    pub fn names_workload(&self) -> bool {
        self.fields().any(names_workload)
    }

    /// The fields in `id`, a SPIFFE ID in one of `trust_domains` unless that is
    /// empty; `None` if it does not match.
    fn matches<'u>(&self, id: &'u str, trust_domains: &[String]) -> Option<Vec<(Field, &'u str)>> {
        let mut parts = id.strip_prefix(SCHEME)?.split('/');
        let trust_domain = parts.clone().next()?;
        if !trust_domains.is_empty() && !trust_domains.iter().any(|listed| listed == trust_domain) {
            return None;
        }
        let mut fields = Vec::new();
        for segment in &self.0 {
            let part = parts.next().filter(|part| !part.is_empty())?;
            match segment {
                Segment::Exact(exact) if exact != part => return None,
                Segment::Exact(_) | Segment::Any => {}
                Segment::Field(field) => fields.push((*field, part)),
            }
        }
        parts.next().is_none().then_some(fields)
    }
}

impl TryFrom<String> for SpiffePattern {
    type Error = &'static str;

    fn try_from(pattern: String) -> Result<Self, Self::Error> {
        Self::parse(&pattern).ok_or("not a pattern of SPIFFE IDs")
    }
}

/// Whether a field names a workload.
#[must_use]
pub fn names_workload(field: Field) -> bool {
    matches!(field, Field::Name | Field::WorkloadName)
}

/// The fields in `uri_san` by the first of `patterns` that it matches and whose
/// fields `accepts` accepts.
#[must_use]
pub fn identity<'u>(
    uri_san: &'u [u8],
    patterns: &[SpiffePattern],
    trust_domains: &[String],
    accepts: impl Fn(&[(Field, &str)]) -> bool,
) -> Option<Vec<(Field, &'u str)>> {
    let id = std::str::from_utf8(uri_san).ok()?;
    let mut identities = patterns
        .iter()
        .filter_map(|pattern| pattern.matches(id, trust_domains));
    identities.find(|identity| accepts(identity))
}

/// Whether `uri_san` vouches for a peer that makes these `claims`.
#[must_use]
pub fn vouches(
    uri_san: &[u8],
    claims: &[(Field, Box<str>)],
    patterns: &[SpiffePattern],
    trust_domains: &[String],
) -> bool {
    let is_claimed = |(field, text): &(Field, &str)| {
        let mut claims = claims.iter();
        claims.any(|(claimed, claim)| claimed == field && **claim == **text)
    };
    let accepts = |identity: &[(Field, &str)]| identity.iter().all(is_claimed);
    identity(uri_san, patterns, trust_domains, accepts).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vouches_for(
        uri: &[u8],
        claims: &[(Field, &str)],
        pattern: &str,
        domains: &[String],
    ) -> bool {
        let claims: Vec<_> = claims
            .iter()
            .map(|(field, text)| (*field, (*text).into()))
            .collect();
        let pattern = SpiffePattern::parse(pattern).unwrap();
        vouches(uri, &claims, &[pattern], domains)
    }

    const ISTIO: &str = "spiffe://{trust_domain}/ns/{NAMESPACE}/sa/{_}";

    #[test]
    fn only_the_exact_form_is_accepted() {
        assert_eq!(SpiffePattern::parse(ISTIO), Some(SpiffePattern::istio()));
        let domains = ["cluster.local".to_owned()];
        let vouches = |uri: &[u8], namespace: &str, domains: &[String]| {
            vouches_for(uri, &[(Field::Namespace, namespace)], ISTIO, domains)
        };
        assert!(vouches(
            b"spiffe://cluster.local/ns/shop/sa/pay",
            "shop",
            &domains
        ));
        assert!(vouches(b"spiffe://other/ns/shop/sa/pay", "shop", &[]));
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
            assert!(!vouches(uri.as_bytes(), namespace, &domains), "{uri}");
        }
        assert!(!vouches(b"spiffe:///ns/shop/sa/pay", "shop", &[]));
        assert!(!vouches(b"spiffe://\xff/ns/shop/sa/pay", "shop", &[]));
    }

    #[test]
    fn every_field_of_the_pattern_must_be_claimed_and_equal() {
        let consul = "spiffe://{trust_domain}/ns/{NAMESPACE}/dc/{_}/svc/{WORKLOAD_NAME}";
        let uri = b"spiffe://11111111.consul/ns/default/dc/dc1/svc/web";
        let (namespace, workload) = ((Field::Namespace, "default"), (Field::WorkloadName, "web"));
        assert!(vouches_for(uri, &[namespace, workload], consul, &[]));
        for claims in [
            &[][..],
            &[namespace],
            &[workload],
            &[namespace, (Field::WorkloadName, "api")],
            &[namespace, (Field::Name, "web")],
        ] {
            assert!(!vouches_for(uri, claims, consul, &[]), "{claims:?}");
        }
        let kuma = "spiffe://{MESH_ID}/{WORKLOAD_NAME}";
        let claims = [(Field::MeshId, "default"), (Field::WorkloadName, "backend")];
        let domains = ["default".to_owned()];
        assert!(vouches_for(
            b"spiffe://default/backend",
            &claims,
            kuma,
            &domains
        ));
        let others = ["other".to_owned()];
        assert!(!vouches_for(
            b"spiffe://default/backend",
            &claims,
            kuma,
            &others
        ));
    }

    #[test]
    fn a_malformed_pattern_is_refused() {
        for pattern in [
            "",
            "{NAMESPACE}",
            "spiffe://",
            "spiffe://{trust_domain}",
            "spiffe://{WORKLOAD_NAME}",
            "spiffe://{trust_domain}/ns/{_}",
            "spiffe://td/{trust_domain}/{NAME}",
            "spiffe://td//{NAME}",
            "spiffe://td/{NAME}/",
            "spiffe://td/x{NAME}",
            "spiffe://td/{LABELS}",
            "spiffe://td/{name}",
            "https://td/{NAME}",
        ] {
            assert_eq!(SpiffePattern::parse(pattern), None, "{pattern}");
        }
    }
}
