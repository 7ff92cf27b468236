//! Where configuration reads from besides its own file: variables, files, systemd credentials.
//!
//! The [`Environment`] is an argument, so that tests need neither variables nor files of the machine.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use secrecy::{ExposeSecret, SecretBox, SecretString};
use zeroize::Zeroizing;

use super::checked::Checker;
use super::file;
use super::report::Key;
use super::shape::SECRET_FORMS;
use crate::clock::Clock;
use crate::jose::sign::SigningKey;

/// What configuration may look at. Nothing here changes anything.
pub trait Environment {
    /// The variable `name`, if it is set and is text.
    fn var(&self, name: &str) -> Option<String>;

    /// The whole file at `path`.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Unix permission bits of the file at `path`.
    fn mode(&self, path: &Path) -> io::Result<u32>;

    /// The path without links and relative parts.
    fn real(&self, path: &Path) -> io::Result<PathBuf>;

    /// What a program prints; an error when it does not end well.
    fn run(&self, command: &[String]) -> io::Result<Vec<u8>>;

    /// For what is good until a certain time.
    fn now(&self) -> SystemTime;
}

/// The environment of this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Process;

impl Environment for Process {
    fn var(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn mode(&self, path: &Path) -> io::Result<u32> {
        use std::os::unix::fs::PermissionsExt;
        Ok(std::fs::metadata(path)?.permissions().mode())
    }

    fn real(&self, path: &Path) -> io::Result<PathBuf> {
        std::fs::canonicalize(path)
    }

    fn run(&self, command: &[String]) -> io::Result<Vec<u8>> {
        let (program, arguments) = command.split_first().ok_or_else(|| io::Error::other("no program"))?;
        let mut run = Command::new(program);
        let output = run.args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
        match output.status.success() {
            true => Ok(output.stdout),
            false => Err(io::Error::other(output.status.to_string())),
        }
    }

    fn now(&self) -> SystemTime {
        Clock::system().now()
    }
}

/// A key that seals what is stored; 32 bytes for the AEAD.
pub struct SealingKey {
    /// Name of the key, `[A-Za-z0-9_-]{1,32}`.
    pub id: String,
    pub key: SecretBox<[u8; 32]>,
}

/// The one place a secret is read from.
enum Source<'a> {
    Variable(&'a str),
    File(&'a Path),
    Credential(&'a str),
    /// Of a sealing key only.
    Command(&'a [String]),
}

/// Reads the secret written at `key`. `None`: a problem was recorded.
pub(super) fn resolve(check: &mut Checker<'_>, key: &Key, written: &file::Secret) -> Option<SecretString> {
    let place = match written {
        file::Secret::Place(place) => place,
        file::Secret::Plain(text) => return plain(check, key, text),
    };
    let source =
        source(check, key, place.env.as_deref(), place.file.as_deref(), place.credential.as_deref())?;
    read(check, key, &source)
}

/// A configuration file is copied, shown and kept in places where a secret has no business.
fn plain(check: &mut Checker<'_>, key: &Key, text: &SecretString) -> Option<SecretString> {
    let write = format!("write {SECRET_FORMS}");
    if text.expose_secret().is_empty() {
        check.refuse(key, "is empty", write);
        return None;
    }
    if !check.is_loopback() {
        check.refuse(key, "a secret does not stand in the file itself", write);
        return None;
    }
    check.warn(key, "a secret stands in the file itself", write);
    Some(text.clone())
}

/// Reads and checks all sealing keys.
pub(super) fn sealing_keys(check: &mut Checker<'_>, written: &[file::SealingKey]) -> Vec<SealingKey> {
    let list = Key::top("sealing_keys");
    let mut keys: Vec<SealingKey> = Vec::with_capacity(written.len());
    for (index, entry) in written.iter().enumerate() {
        let key = list.item(index);
        let id = key.child("id");
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if entry.id.is_empty() || entry.id.len() > 32 || !entry.id.chars().all(plain) {
            check.refuse(&id, "is not a key id", "write 1 to 32 letters, digits, `-` or `_`");
        } else if written.iter().take(index).any(|earlier| earlier.id == entry.id) {
            check.refuse(&id, "is used twice", "give each key an id of its own");
        }
        let (env, file, credential) =
            (entry.env.as_deref(), entry.file.as_deref(), entry.credential.as_deref());
        let source = match &entry.command {
            Some(command) if env.is_none() && file.is_none() && credential.is_none() => {
                Some(Source::Command(command))
            }
            // Together with another place it is one too many.
            Some(_) => source(check, &key, Some(""), Some(Path::new("")), None),
            None => source(check, &key, env, file, credential),
        };
        let Some(source) = source else {
            continue;
        };
        let place = key.child(source.name());
        if let Source::File(path) = source
            && !private(check, &place, path)
        {
            continue;
        }
        let Some(text) = read(check, &key, &source) else {
            continue;
        };
        if let Some(bytes) = key_bytes(check, &place, &text) {
            keys.push(SealingKey { id: entry.id.clone(), key: bytes });
        }
    }
    keys
}

/// Reads and checks the keys that sign tokens.
pub(super) fn signing_keys(check: &mut Checker<'_>, written: &[file::SigningKey]) -> Vec<SigningKey> {
    let list = Key::top("oauth_server").child("signing_keys");
    let mut keys = Vec::with_capacity(written.len());
    for (index, entry) in written.iter().enumerate() {
        let (id, place) = (list.item(index).child("id"), list.item(index).child("file"));
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if entry.id.is_empty() || entry.id.len() > 64 || !entry.id.chars().all(plain) {
            check.refuse(&id, "is not a key id", "write 1 to 64 letters, digits, `-` or `_`");
        } else if written.iter().take(index).any(|earlier| earlier.id == entry.id) {
            check.refuse(&id, "is used twice", "give each key an id of its own");
        }
        if !private(check, &place, &entry.file) {
            continue;
        }
        let Some(pem) = check.read(&place, &entry.file).map(Zeroizing::new) else {
            continue;
        };
        match SigningKey::from_pem(&entry.id, &pem) {
            Some(key) => keys.push(key),
            None => {
                let what = format!("{} holds no key that we sign with", entry.file.display());
                let write = "make one: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256";
                check.refuse(&place, what, write);
            }
        }
    }
    keys
}

/// Decodes the 32 bytes of a key.
fn key_bytes(check: &mut Checker<'_>, key: &Key, text: &SecretString) -> Option<SecretBox<[u8; 32]>> {
    let write = "write what `postern keys generate` prints: 32 random bytes in base64";
    let Ok(bytes) = data_encoding::BASE64.decode(text.expose_secret().trim().as_bytes()).map(Zeroizing::new)
    else {
        check.refuse(key, "holds no base64", write);
        return None;
    };
    let Ok(exact) = <[u8; 32]>::try_from(bytes.as_slice()).map(Zeroizing::new) else {
        check.refuse(key, format!("holds {} bytes, not 32", bytes.len()), write);
        return None;
    };
    // A file of one repeated byte is a placeholder, never a key.
    if bytes.windows(2).all(|pair| pair.first() == pair.last()) {
        check.refuse(key, "holds a placeholder, not random bytes", write);
        return None;
    }
    Some(SecretBox::new(Box::new(*exact)))
}

/// Whether only the owner can get at the file at `path`: by its own mode, or because nobody else gets through one of
/// the directories above it.
fn private(check: &mut Checker<'_>, key: &Key, path: &Path) -> bool {
    let real = check.environment().real(path).unwrap_or_else(|_| path.to_owned());
    let is_shut = |directory: &Path| check.environment().mode(directory).is_ok_and(|mode| mode & 0o011 == 0);
    let shut = real.ancestors().skip(1).any(is_shut);
    match check.environment().mode(path) {
        Ok(mode) if mode & 0o077 != 0 && !shut => {
            let what = format!("key file {} is readable by others", path.display());
            check.refuse(key, what, format!("run chmod 600 {}", path.display()));
            false
        }
        // A file that is not there is reported where it is read.
        _ => true,
    }
}

impl Source<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Variable(_) => "env",
            Self::File(_) => "file",
            Self::Credential(_) => "credential",
            Self::Command(_) => "command",
        }
    }
}

/// Exactly one of the three must be written.
fn source<'a>(
    check: &mut Checker<'_>,
    key: &Key,
    env: Option<&'a str>,
    file: Option<&'a Path>,
    credential: Option<&'a str>,
) -> Option<Source<'a>> {
    match (env, file, credential) {
        (Some(name), None, None) => Some(Source::Variable(name)),
        (None, Some(path), None) => Some(Source::File(path)),
        (None, None, Some(name)) => Some(Source::Credential(name)),
        (None, None, None) => {
            check.refuse(key, "does not say where the secret is", format!("write {SECRET_FORMS}"));
            None
        }
        _ => {
            check.refuse(
                key,
                "names more than one place for a secret",
                format!("write one of {SECRET_FORMS}"),
            );
            None
        }
    }
}

fn read(check: &mut Checker<'_>, key: &Key, source: &Source<'_>) -> Option<SecretString> {
    let key = &key.child(source.name());
    let text = match source {
        Source::Variable(name) => {
            let value = check.environment().var(name);
            if value.is_none() {
                check.refuse(key, format!("environment variable {name} is not set"), "set it to the secret");
            }
            Zeroizing::new(value?)
        }
        Source::File(path) => file_text(check, key, path)?,
        Source::Credential(name) => {
            if name.is_empty() || name.contains('/') || matches!(*name, "." | "..") {
                check.refuse(key, "is not the name of a credential", "write a name without slashes");
                return None;
            }
            let Some(directory) = check.environment().var("CREDENTIALS_DIRECTORY") else {
                let write = format!("start Postern with LoadCredential={name}:… in its systemd unit");
                check.refuse(key, "$CREDENTIALS_DIRECTORY is not set", write);
                return None;
            };
            file_text(check, key, &PathBuf::from(directory).join(name))?
        }
        Source::Command(command) => match check.environment().run(command).map(Zeroizing::new) {
            Ok(printed) => Zeroizing::new(String::from_utf8_lossy(&printed).into_owned()),
            Err(error) => {
                check.refuse(
                    key,
                    format!("the command fails: {error}"),
                    "make it print the key and end with 0",
                );
                return None;
            }
        },
    };
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        check.refuse(key, "the secret there is empty", "put the secret there");
        return None;
    }
    Some(SecretString::from(secret))
}

fn file_text(check: &mut Checker<'_>, key: &Key, path: &Path) -> Option<Zeroizing<String>> {
    let bytes = check.read(key, path)?;
    match String::from_utf8(bytes) {
        Ok(text) => Some(Zeroizing::new(text)),
        Err(_) => {
            check.refuse(
                key,
                format!("{} is not text", path.display()),
                "put the secret there as UTF-8 text",
            );
            None
        }
    }
}
