//! `streamfs serve CONTENT --listen ADDR`

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use fs_core::config::ServeSettings;
use fs_core::location::{Origin, PackageLocation};
use serde_json::json;
use stream_server::{
    CertificateSource, ContentRoot, LimitSettings, LogTarget, Reloader, Server, ServerSettings, TlsSettings,
};
use tokio::signal::unix::{SignalKind, signal};

use super::Context;
use crate::agent::protocol::WirePath;
use crate::report;
use crate::service_manager::{self, State};
use crate::settings::InForce;

/// Arguments of `serve`. What is not given stands in the settings file, or has a default.
#[derive(Debug, Clone, Args)]
pub struct ServeArguments {
    /// Content root: the folder that `publish` publishes to, or the URL of one that is served anew
    #[arg(value_name = "CONTENT")]
    content: Option<PathBuf>,
    /// Address to listen on, also more than once; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT")]
    listen: Vec<String>,
    /// Certificate chain (PEM), the server's own first: TLS is spoken beside clear text
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Make a certificate for trials in this folder, with an authority for clients to trust (ca.pem), or use the one there
    #[arg(long, value_name = "DIR", conflicts_with = "tls_cert")]
    tls_trial: Option<PathBuf>,
    /// Refuse whoever does not speak TLS
    #[arg(long)]
    tls_only: bool,
    /// Authorities (PEM) whose certificates clients may show
    #[arg(long, value_name = "FILE")]
    client_ca: Option<PathBuf>,
    /// File that says who may read and publish which package (docs/ACCESS.md); without it everybody may read everything
    #[arg(long, value_name = "FILE")]
    access: Option<PathBuf>,
    /// Write each request to this file as a line of JSON; - for standard output
    #[arg(long, value_name = "FILE")]
    access_log: Option<PathBuf>,
    /// Most bytes per second to one client, for example 20M/s
    #[arg(long, value_name = "RATE", value_parser = crate::arguments::rate)]
    client_rate: Option<u64>,
    /// Most bytes per second to all clients together
    #[arg(long, value_name = "RATE", value_parser = crate::arguments::rate)]
    total_rate: Option<u64>,
    /// How long transfers may take to finish once the end was asked for
    #[arg(long, value_name = "DURATION", value_parser = crate::arguments::duration)]
    drain: Option<Duration>,
    /// Most connections at a time
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    connections: Option<u32>,
    /// Most connections at a time from one address
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    connections_per_address: Option<u32>,
    /// How often to look for new versions where the system does not tell of them
    #[arg(long, value_name = "DURATION", value_parser = crate::arguments::duration)]
    poll_interval: Option<Duration>,
    /// Print the addresses as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: ServeArguments, context: &Context) -> anyhow::Result<()> {
    // Taken first: what is not taken stays open and deaf for as long as this runs.
    let sockets = service_manager::sockets()?;
    // Before it serves: a SIGHUP that nobody waits for would end the program.
    let mut reload = signal(SignalKind::hangup()).context("cannot handle signals")?;
    service_manager::raise_open_files();
    let settings = ServerSettings { sockets, ..server_settings(&arguments, &context.settings(None)?)? };
    let secure = settings.tls.is_some();
    let content = settings.content.clone();
    let server = Server::bind(settings).await?;
    tell(&arguments, &content, &server, secure)?;
    let reloader = server.reloader();
    let interrupt = context.interrupt.clone();
    let serving = server.run(async move {
        interrupt.wait().await;
        service_manager::tell(State::Stopping);
    });
    service_manager::tell(State::Ready);
    tokio::pin!(serving);
    loop {
        tokio::select! {
            ended = &mut serving => return Ok(ended?),
            _ = reload.recv() => {
                service_manager::tell(State::Reloading);
                if let Err(error) = read_again(&arguments, context, &reloader) {
                    // It goes on as it was: a mistake in a file is no reason to leave everybody alone.
                    let error = report::error_line(&error).unwrap_or_default();
                    tracing::error!("the settings were not read again, and nothing changed: {error}");
                }
                service_manager::tell(State::Ready);
            }
            () = again(context) => bail!("asked a second time to end; transfers were cut off"),
        }
    }
}

/// Waits for a second signal to end at once, after the first.
async fn again(context: &Context) {
    context.interrupt.wait().await;
    // Listening begins after the first signal came, so only another one is seen.
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        }
        // Then the drain deadline ends it.
        _ => std::future::pending().await,
    }
}

fn tell(arguments: &ServeArguments, content: &ContentRoot, server: &Server, secure: bool) -> anyhow::Result<()> {
    let scheme = if secure { "https" } else { "http" };
    let urls: Vec<String> = server.addresses().iter().map(|address| format!("{scheme}://{address}")).collect();
    if !arguments.json {
        return report::line(format!("serving {content} at {}", urls.join(" and ")));
    }
    let content = match content {
        ContentRoot::Folder(dir) => WirePath::from(dir.as_path()),
        ContentRoot::Origin { url, .. } => WirePath::from(std::path::Path::new(url)),
    };
    let addresses: Vec<String> = server.addresses().iter().map(ToString::to_string).collect();
    report::json(&json!({
        "content_dir": content,
        "address": addresses[0],
        "url": urls[0],
        "addresses": addresses,
        "urls": urls,
    }))
}

fn read_again(arguments: &ServeArguments, context: &Context, reloader: &Reloader) -> anyhow::Result<()> {
    let settings = server_settings(arguments, &context.settings(None)?)?;
    reloader.reload(&settings)?;
    tracing::info!("the settings were read again");
    Ok(())
}

/// What applies: flag, else settings file, else default.
fn server_settings(arguments: &ServeArguments, settings: &InForce) -> anyhow::Result<ServerSettings> {
    let file = &settings.serving;
    let Some(content) = arguments.content.clone().or_else(|| file.content.clone()) else {
        bail!(
            "nothing says what to serve; name a content root, for example: streamfs serve /srv/content --listen 0.0.0.0:8080"
        );
    };
    let mut server = ServerSettings::new("", "");
    server.content = content_root(content, settings)?;
    server.listen = if arguments.listen.is_empty() { file.listen.clone() } else { arguments.listen.clone() };
    server.tls = tls(arguments, file, &server.listen)?;
    server.access = arguments.access.clone().or_else(|| file.access.clone());
    server.access_log = match arguments.access_log.clone().or_else(|| file.access_log.clone()) {
        None => LogTarget::Off,
        Some(path) if path.as_os_str() == "-" => LogTarget::StandardOutput,
        Some(path) => LogTarget::File(path),
    };
    server.limits = LimitSettings {
        client_bytes_per_second: arguments.client_rate.or(file.client_rate),
        total_bytes_per_second: arguments.total_rate.or(file.total_rate),
    };
    if [server.limits.client_bytes_per_second, server.limits.total_bytes_per_second].contains(&Some(0)) {
        bail!("a rate of nothing at all would serve nobody; leave it out for no limit");
    }
    server.drain_deadline = arguments.drain.or(file.drain).unwrap_or(server.drain_deadline);
    server.connections = arguments.connections.or(file.connections).unwrap_or(server.connections);
    let per_address = arguments.connections_per_address.or(file.connections_per_address);
    server.connections_per_address = per_address.unwrap_or(server.connections_per_address);
    server.idle_timeout = file.idle_timeout.unwrap_or(server.idle_timeout);
    server.poll_interval = arguments.poll_interval.or(file.poll_interval);
    Ok(server)
}

/// A folder, or a content root elsewhere with the credentials that the settings have for it.
fn content_root(content: PathBuf, settings: &InForce) -> anyhow::Result<ContentRoot> {
    let Some(url) = content.to_str().filter(|text| text.contains("://")) else {
        return Ok(ContentRoot::Folder(content));
    };
    let url = url.trim_end_matches('/').to_owned();
    // Any package of it is reached like the others.
    let location: PackageLocation = format!("{url}/package").parse()?;
    match &location.origin {
        Origin::Folder(folder) => Ok(ContentRoot::Folder(folder.clone())),
        _ => Ok(ContentRoot::Origin { url, config: Box::new(settings.origin_config(&location)) }),
    }
}

fn tls(arguments: &ServeArguments, file: &ServeSettings, listen: &[String]) -> anyhow::Result<Option<TlsSettings>> {
    // A flag replaces the file's certificate as a whole: one's key does not go with the other's certificate.
    let files = match (&arguments.tls_cert, &arguments.tls_key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        _ => match (&file.tls_cert, &file.tls_key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => bail!("tls_cert and tls_key belong together; the settings file has only one of them"),
        },
    };
    let certificate = match (&arguments.tls_trial, files) {
        (Some(dir), _) => CertificateSource::Trial { dir: dir.clone(), names: hosts(listen) },
        (None, Some((certificate, key))) => {
            CertificateSource::Files { certificate: certificate.clone(), key: key.clone() }
        }
        (None, None) => {
            let only = arguments.tls_only || file.tls_only == Some(true);
            let client_ca = arguments.client_ca.is_some() || file.client_ca.is_some();
            if only || client_ca {
                bail!("without a certificate there is no TLS; give --tls-cert and --tls-key, or --tls-trial");
            }
            return Ok(None);
        }
    };
    Ok(Some(TlsSettings {
        certificate,
        client_ca: arguments.client_ca.clone().or_else(|| file.client_ca.clone()),
        only: arguments.tls_only || file.tls_only.unwrap_or(false),
    }))
}

/// The hosts of these addresses, without those that stand for all.
fn hosts(listen: &[String]) -> Vec<String> {
    let host = |address: &String| {
        let (host, _) = address.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        (!matches!(host, "" | "0.0.0.0" | "::")).then(|| host.to_owned())
    };
    listen.iter().filter_map(host).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: ServeArguments,
    }

    fn settings(line: &str, file: &str) -> anyhow::Result<ServerSettings> {
        let words = std::iter::once("serve").chain(line.split(' ').filter(|word| !word.is_empty()));
        let arguments = Line::parse_from(words).arguments;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, file).unwrap();
        let settings = InForce::load(Some(&path), &|name| (name == "HOME").then(|| "/h".into()))?;
        server_settings(&arguments, &settings)
    }

    const FILE: &str = r#"
        [server]
        content = "/srv/content"
        listen = ["0.0.0.0:443"]
        tls_cert = "/cert"
        tls_key = "/key"
        drain = "5s"
        connections = 7
        [[origin]]
        url = "https://behind.example/content"
        ca_file = "/ca.pem"
    "#;

    #[test]
    fn flags_go_before_the_file_and_the_file_before_defaults() {
        let file = settings("", FILE).unwrap();
        assert!(matches!(&file.content, ContentRoot::Folder(dir) if dir == std::path::Path::new("/srv/content")));
        assert_eq!((file.listen.as_slice(), file.connections), (["0.0.0.0:443".to_owned()].as_slice(), 7));
        assert_eq!(file.drain_deadline, Duration::from_secs(5));
        let line = "/other --listen 127.0.0.1:0 --listen [::1]:0 --tls-cert /c --tls-key /k --tls-only --drain 9s";
        let flags = settings(line, FILE).unwrap();
        assert!(matches!(&flags.content, ContentRoot::Folder(dir) if dir == std::path::Path::new("/other")));
        assert_eq!((flags.listen.len(), flags.drain_deadline), (2, Duration::from_secs(9)));
        let certificate = CertificateSource::Files { certificate: "/c".into(), key: "/k".into() };
        assert_eq!(flags.tls, Some(TlsSettings { certificate, client_ca: None, only: true }));
        let neither = settings("/other", "").unwrap();
        assert_eq!((&neither.access, &neither.access_log), (&None, &LogTarget::Off));
        assert!(neither.tls.is_none() && neither.listen.is_empty() && neither.connections > 1000);
    }

    #[test]
    fn access_and_limits_are_taken_from_flags_or_the_file() {
        let file = "[server]\naccess = \"/a\"\naccess_log = \"-\"\nclient_rate = \"2M\"\ntotal_rate = \"1G\"";
        let it = settings("/c", file).unwrap();
        assert_eq!(
            (it.access.as_deref(), it.access_log),
            (Some(std::path::Path::new("/a")), LogTarget::StandardOutput)
        );
        let (client, total) = (Some(2 << 20), Some(1 << 30));
        assert_eq!(it.limits, LimitSettings { client_bytes_per_second: client, total_bytes_per_second: total });
        let it = settings("/c --access /b --access-log /log --client-rate 5K/s", file).unwrap();
        assert_eq!((it.access, it.access_log), (Some("/b".into()), LogTarget::File("/log".into())));
        assert_eq!(it.limits.client_bytes_per_second, Some(5 << 10));
        assert!(settings("/c", "[server]\ntotal_rate = \"0\"").unwrap_err().to_string().contains("nothing"));
    }

    #[test]
    fn a_content_root_elsewhere_is_reached_as_the_settings_say() {
        let origin = settings("https://behind.example/content/", FILE).unwrap();
        let ContentRoot::Origin { url, config } = origin.content else { panic!("it is no folder") };
        assert_eq!(url, "https://behind.example/content");
        assert_eq!(config.ca_files, [PathBuf::from("/ca.pem")]);
        let folder = settings("file:///srv/a%20b", FILE).unwrap();
        assert!(matches!(&folder.content, ContentRoot::Folder(dir) if dir == std::path::Path::new("/srv/a b")));
        assert!(settings("ftp://x/content", FILE).unwrap_err().to_string().contains("ftp"));
    }

    #[test]
    fn a_trial_certificate_has_the_hosts_that_are_listened_on() {
        let line = "/c --tls-trial /t --listen apps.example:443 --listen [2001:db8::1]:443 --listen 0.0.0.0:444";
        let trial = settings(line, "").unwrap().tls.unwrap();
        let names = vec!["apps.example".to_owned(), "2001:db8::1".to_owned()];
        assert_eq!(trial.certificate, CertificateSource::Trial { dir: "/t".into(), names });
    }

    #[test]
    fn what_is_missing_is_named() {
        for (line, file, words) in [
            ("", "", "what to serve"),
            ("/c --tls-only", "", "--tls-cert"),
            ("/c --client-ca /a", "", "--tls-cert"),
            ("/c", "[server]\ntls_cert = \"/x\"", "belong together"),
        ] {
            let error = settings(line, file).unwrap_err().to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
