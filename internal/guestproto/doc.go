// Package guestproto is the language that the monitor (host) and guestinit
// (guest) speak over the VM's one control port. It holds message types and
// framing only; both sides import it and it imports neither.
//
// The port ([ControlPort], a virtio-serial port) carries a yamux session with
// the host as client. Every request is a stream of its own, opened by the host:
//
//	host                                        guest
//	 |-- open stream, Request{Op: "hello"} ------>|   version, clock, entropy
//	 |<------------------------- Reply -----------|   then both sides close
//	 |-- Request{Op: "create", guest spec} ------>|   builds the container, stops before exec
//	 |<------------------------- Reply -----------|
//	 |-- Request{Op: "stdio", "", "stdin"} ------>|   one stream per standard stream:
//	 |<------------------------- Reply -----------|   after the Reply it is raw bytes,
//	 |== bytes =================================>|   ended by a close of the writing side
//	 |-- Request{Op: "wait", ""} ---------------->|   answered when the process has ended
//	 |-- Request{Op: "start", network} ---------->|   configures NICs, execs
//	 |<------------------------- Reply -----------|
//	 |-- Request{Op: "oom", seen} --------------->|   answered when the kernel has killed for
//	 |        ...exec, signal, resize...          |   lack of memory more often than seen
//	 |        ...update, stats, clock, network... |
//	 |-- Request{Op: "accept", a socket} -------->|   some at once for each of the host's sockets;
//	 |<------------------------- Reply -----------|   answered when a client has connected,
//	 |<=========================================>|   whose connection follows
//	 |<------------------- Reply to wait ---------|   all output is in the streams by then
//
// A guest that has no session yet may be asked to rehearse, any number of times:
//
//	|-- byte Rehearsal, RehearsalRequest ------->|   a container's life, from hello to wait,
//	|<------------------------- Reply -----------|   in a session of the guest's with itself
//
// or, before it is saved as a template, how fast its clock is:
//
//	|-- byte ClockRate ------------------------->|
//	|<------------------ Reply, ClockRateReply --|
//
// A pod's members are further containers of the same VM. Each goes through create,
// start and wait in the same session, and ends with remove. [Op.In] names it.
//
// A request is two frames, the operation's name and a body; a reply is one. A
// frame is a 4-byte big-endian length and that many bytes of JSON, at most
// [MaxRequest] towards the guest and [MaxReply] towards the host: the guest is
// hostile, so the host never reads more than it has bounded beforehand.
package guestproto
