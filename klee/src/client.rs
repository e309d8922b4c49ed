//! Requests to the daemon over its socket.

use std::cell::RefCell;
use std::error::Error;
use std::fmt::{self, Display};
use std::future::Future;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::http::request;
use hyper::upgrade::Upgraded;
use hyper::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use indicatif::{HumanBytes, HumanCount, ProgressBar};
use kleened_api::operation::{Operation, OperationStatus, WaitQuery};
use kleened_api::routes::{self, PREFER, PREFER_EXACT, PROJECT};
use kleened_api::{ErrorBody, ErrorCode, ProjectName};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::failure::Failure;
use crate::print;
use crate::signals::{ENDING, Signals};
use crate::socket::Socket;

/// What the daemon does when klee is interrupted while it waits.
pub(crate) const GOES_ON: &str = "kleened finishes what it was asked to do";

/// What is left when the daemon has gone.
const CONTAINERS_GO_ON: &str = "containers go on; try again";

/// The daemon, as it is reached.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
    /// Where is what is named without a project.
    project: ProjectName,
}

impl Client {
    /// A client for the socket that `host` names. Nothing is connected yet.
    ///
    /// # Errors
    ///
    /// `host` is neither an absolute path, `unix://` with one, nor Kleene's `http://` with one.
    pub(crate) fn new(host: &str, project: ProjectName) -> Result<Self, Failure> {
        let path =
            host.strip_prefix("unix://").or_else(|| host.strip_prefix("http://")).unwrap_or(host);
        if path.starts_with('/') {
            Ok(Self { socket: path.into(), project })
        } else {
            Err(Failure::usage(format!(
                "'{}' names no socket: write --host /PATH, unix:///PATH or http:///PATH",
                host.escape_default()
            )))
        }
    }

    /// Where is what is named without a project.
    pub(crate) fn project(&self) -> &ProjectName {
        &self.project
    }

    /// A volume that the daemon named, as a person would here.
    pub(crate) fn own<'n>(&self, name: &'n str) -> &'n str {
        let own = name.strip_prefix(self.project.as_str()).and_then(|rest| rest.strip_prefix(':'));
        own.unwrap_or(name)
    }

    /// A new connection.
    async fn connect(&self) -> Result<UnixStream, Failure> {
        UnixStream::connect(&self.socket).await.map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    "is kleened running? Another socket is named by --host or KLEE_HOST"
                }
                io::ErrorKind::PermissionDenied => {
                    "only root and the socket's group may use it; ls -l shows the group"
                }
                _ => "",
            };
            let what = format!("cannot reach kleened at {}", self.socket.display());
            let failure = Failure::new(ErrorCode::Unavailable, what).caused_by(&error);
            if hint.is_empty() { failure } else { failure.because(hint) }
        })
    }

    /// Sends a request. The answer has a status of success; its body is still to be read.
    pub(crate) async fn send<B>(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: B,
    ) -> Result<Response<Incoming>, Failure>
    where
        B: Body<Data: Send> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut request = Request::builder().method(method).uri(path);
        if !body.is_end_stream() {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        self.exchange(request, body).await
    }

    /// Makes a connection that speaks another protocol from then on, of which `request` has the
    /// headers.
    pub(crate) async fn upgrade(
        &self,
        request: request::Builder,
    ) -> Result<(HeaderMap, TokioIo<Upgraded>), Failure> {
        let request = request.header(header::CONNECTION, "upgrade");
        let response = self.exchange(request, Empty::<Bytes>::new()).await?;
        let headers = response.headers().clone();
        let stream = hyper::upgrade::on(response).await.map_err(broken)?;
        Ok((headers, TokioIo::new(stream)))
    }

    async fn exchange<B>(
        &self,
        request: request::Builder,
        body: B,
    ) -> Result<Response<Incoming>, Failure>
    where
        B: Body<Data: Send> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let request = request
            .header(header::HOST, "localhost")
            .header(header::USER_AGENT, concat!("klee/", env!("CARGO_PKG_VERSION")))
            .header(PREFER, PREFER_EXACT);
        let request = match self.project.is_default() {
            true => request,
            false => request.header(PROJECT, self.project.as_str()),
        };
        let request = request
            .body(body)
            .map_err(|error| Failure::local("cannot write the request", &error))?;
        let stream = TokioIo::new(Socket(self.connect().await?));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(stream).await.map_err(broken)?;
        tokio::spawn(connection.with_upgrades());
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let body = read(response).await?;
        Err(refusal(status, &body).into())
    }

    /// The body of the answer to a question.
    pub(crate) async fn get(&self, path: &str) -> Result<Bytes, Failure> {
        read(self.send(Method::GET, path, "", Full::<Bytes>::default()).await?).await
    }

    /// The answer to a change without a body.
    pub(crate) async fn change<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<T, Failure> {
        self.finish(self.send(method, path, "", Full::<Bytes>::default()), GOES_ON).await
    }

    /// The answer to a change with a JSON body.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.finish(self.send_json(path, body), GOES_ON).await
    }

    /// As [`post`](Self::post), and no signal ends the waiting.
    pub(crate) async fn post_to_the_end<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.conclude(self.send_json(path, body), &RefCell::default()).await
    }

    async fn send_json(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Response<Incoming>, Failure> {
        let body = serde_json::to_vec(body)
            .map_err(|error| Failure::local("cannot write the request", &error))?;
        self.send(Method::POST, path, "application/json", Full::new(Bytes::from(body))).await
    }

    /// The answer to a change, which is waited for however long it takes. ^C ends the waiting;
    /// `meanwhile` says what becomes of the change before the daemon has said that it is under way.
    pub(crate) async fn finish<T: DeserializeOwned>(
        &self,
        request: impl Future<Output = Result<Response<Incoming>, Failure>>,
        meanwhile: &str,
    ) -> Result<T, Failure> {
        let meanwhile = RefCell::new(meanwhile.to_owned());
        let becomes = fmt::from_fn(|f| f.write_str(&meanwhile.borrow()));
        interruptible(self.conclude(request, &meanwhile), becomes).await
    }

    /// The answer to a change; `meanwhile` always says what becomes of it where it is not waited for.
    async fn conclude<T: DeserializeOwned>(
        &self,
        request: impl Future<Output = Result<Response<Incoming>, Failure>>,
        meanwhile: &RefCell<String>,
    ) -> Result<T, Failure> {
        let response = request.await?;
        let under_way = response.status() == StatusCode::ACCEPTED;
        let body = read(response).await?;
        if !under_way {
            return print::parse(&body);
        }
        let operation: Operation = print::parse(&body)?;
        *meanwhile.borrow_mut() =
            format!("kleened goes on with operation {}: {}", operation.id, operation.what);
        let reply = self.wait(operation).await?;
        serde_json::from_value(reply).map_err(|error| {
            Failure::new(ErrorCode::Internal, "cannot read the daemon's answer").caused_by(&error)
        })
    }

    /// Waits for the end of an operation and returns the verb's answer. How far it is shows on a
    /// terminal.
    async fn wait(&self, mut operation: Operation) -> Result<Value, Failure> {
        let terminal = io::stderr().is_terminal();
        let spinner = if terminal { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        spinner.enable_steady_tick(Duration::from_millis(100));
        let query = WaitQuery { wait: if terminal { 1 } else { 60 } };
        let path =
            with_query(&routes::with_name(routes::OPERATION, operation.id.as_str()), &query)?;
        while operation.status == OperationStatus::Running {
            let what = print::escape(&operation.what).into_owned();
            spinner.set_message(match operation.progress {
                Some(done) => {
                    format!("{what}: {} files, {}", HumanCount(done.files), HumanBytes(done.bytes))
                }
                None => what,
            });
            operation = print::parse(&self.get(&path).await?)?;
        }
        spinner.finish_and_clear();
        match (operation.status, operation.error) {
            (OperationStatus::Succeeded, _) => Ok(operation.reply.unwrap_or_default()),
            (_, Some(error)) => Err(error.into()),
            (_, None) => Err(Failure::new(ErrorCode::Internal, operation.what).because("failed")),
        }
    }
}

/// The path with the fields of `query` behind it.
pub(crate) fn with_query(path: &str, query: &impl Serialize) -> Result<String, Failure> {
    let query = serde_urlencoded::to_string(query)
        .map_err(|error| Failure::local("cannot write the request", &error))?;
    Ok(if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") })
}

/// The whole body of an answer.
pub(crate) async fn read(response: Response<Incoming>) -> Result<Bytes, Failure> {
    Ok(response.into_body().collect().await.map_err(broken)?.to_bytes())
}

/// The error for a connection that broke in the middle.
pub(crate) fn broken(error: hyper::Error) -> Failure {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(next) = cause {
        if next.downcast_ref::<io::Error>().is_some_and(is_end) {
            return Failure::daemon_gone(CONTAINERS_GO_ON);
        }
        cause = next.source();
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return Failure::daemon_gone(CONTAINERS_GO_ON);
    }
    Failure::new(ErrorCode::Unavailable, "the connection to kleened broke").caused_by(&error)
}

/// Whether the other end has closed the connection.
pub(crate) fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// The error in an answer's body, whichever daemon wrote it.
fn refusal(status: StatusCode, body: &[u8]) -> ErrorBody {
    let by_status = match status.as_u16() {
        404 => ErrorCode::NotFound,
        403 => ErrorCode::Denied,
        409 => ErrorCode::Conflict,
        501 => ErrorCode::Unsupported,
        503 => ErrorCode::Unavailable,
        507 => ErrorCode::NoSpace,
        400..=499 => ErrorCode::Invalid,
        _ => ErrorCode::Internal,
    };
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let listed = |field: &str, item: fn(&Value) -> &Value| -> Vec<String> {
        body[field].as_array().into_iter().flatten().filter_map(|one| text(item(one))).collect()
    };
    let code = serde_json::from_value(body["code"].clone()).unwrap_or(by_status);
    match text(&body["message"]) {
        Some(message) => {
            let message = message.trim_end().to_owned();
            ErrorBody { message, code, causes: listed("causes", |cause| cause) }
        }
        // Schema errors have a shape of their own.
        None => ErrorBody {
            message: format!("kleened answered with status {status}"),
            code,
            causes: listed("errors", |error| &error["detail"]),
        },
    }
}

/// The result of `work`, unless SIGINT, SIGTERM or SIGHUP comes first.
pub(crate) async fn interruptible<T>(
    work: impl Future<Output = Result<T, Failure>>,
    meanwhile: impl Display,
) -> Result<T, Failure> {
    let mut signals = Signals::watch(ENDING);
    tokio::select! {
        result = work => result,
        (_, number) = signals.next() => Err(Failure::interrupted(number, meanwhile)),
    }
}
