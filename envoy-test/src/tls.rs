//! TLS between sidecars: generated certificates, and the transport sockets with
//! which Envoy presents and verifies them.

use std::path::Path;

use anyhow::Result;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    /// Creates a certificate authority.
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let name = &mut parameters.distinguished_name;
        name.push(DnType::CommonName, "authority of envoy-test");
        let certificate = parameters.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(parameters, key),
            certificate,
        })
    }

    /// Issues a certificate with these `uri_sans`.
    pub fn certify(&self, uri_sans: &[&str]) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::default();
        parameters.subject_alt_names = uri_sans
            .iter()
            .map(|uri| Ok(SanType::URI(Ia5String::try_from(*uri)?)))
            .collect::<Result<_>>()?;
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        Ok(Identity {
            certificate: parameters.signed_by(&key, &self.issuer)?.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Writes its certificate to a file.
    pub fn write(&self, path: &Path) -> Result<()> {
        Ok(std::fs::write(path, &self.certificate)?)
    }

    /// Accepts only certificates of this authority.
    #[must_use]
    pub fn validation(&self) -> Value {
        json!({ "trusted_ca": { "inline_string": self.certificate } })
    }

    /// Requests a certificate of this authority, but accepts any.
    #[must_use]
    pub fn lax_validation(&self) -> Value {
        let mut validation = self.validation();
        validation["trust_chain_verification"] = "ACCEPT_UNTRUSTED".into();
        validation
    }
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Identity {
    certificate: String,
    key: String,
}

impl Identity {
    /// Writes it to files.
    pub fn write(&self, certificate: &Path, key: &Path) -> Result<()> {
        std::fs::write(certificate, &self.certificate)?;
        Ok(std::fs::write(key, &self.key)?)
    }

    fn to_json(&self) -> Value {
        json!({
            "certificate_chain": { "inline_string": self.certificate },
            "private_key": { "inline_string": self.key },
        })
    }
}

/// Whether a listener accepts callers without a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callers {
    /// A certificate is required: mutual TLS.
    Certified,
    /// A certificate is optional, but verified if presented.
    Any,
}

/// The transport socket of a listener that presents `identity` and verifies the
/// callers' certificates by `validation`, if any.
#[must_use]
pub fn listener(identity: &Identity, callers: Callers, validation: Option<&Value>) -> Value {
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": callers == Callers::Certified,
            "common_tls_context": common_context(Some(identity), validation),
        },
    })
}

/// The transport socket of a cluster that presents `identity`, if any, and
/// verifies the callee's certificate by `validation`, if any.
#[must_use]
pub fn cluster(identity: Option<&Identity>, validation: Option<&Value>) -> Value {
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": common_context(identity, validation),
        },
    })
}

fn common_context(identity: Option<&Identity>, validation: Option<&Value>) -> Value {
    let mut context = json!({});
    if let Some(identity) = identity {
        context["tls_certificates"] = json!([identity.to_json()]);
    }
    if let Some(validation) = validation {
        context["validation_context"] = validation.clone();
    }
    context
}
