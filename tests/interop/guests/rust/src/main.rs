//! A client and a server over AF_VSOCK, as a program in Rust does that knows nothing of hvsock.
//!
//!     echo connect PORT   sends its standard input to the host, and prints what comes back
//!     echo listen PORT    sends back what one connection sends

use std::io::{copy, stdin, stdout, Result};
use std::net::Shutdown;
use std::thread;
use vsock::{VsockListener, VsockStream, VMADDR_CID_ANY, VMADDR_CID_HOST};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().collect();
    let port = words[2].parse().expect("a port is a number");
    if words[1] == "connect" {
        connect(port)
    } else {
        listen(port)
    }
}

fn connect(port: u32) -> Result<()> {
    let mut stream = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port)?;
    let mut sending = stream.try_clone()?;
    let sender = thread::spawn(move || -> Result<()> {
        copy(&mut stdin().lock(), &mut sending)?;
        sending.shutdown(Shutdown::Write)
    });
    copy(&mut stream, &mut stdout().lock())?;
    sender.join().expect("the sender ends by itself")
}

fn listen(port: u32) -> Result<()> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port)?;
    let (mut stream, _) = listener.accept()?;
    copy(&mut stream.try_clone()?, &mut stream)?;
    Ok(())
}
