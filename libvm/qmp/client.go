// Package qmp is a client of QEMU's machine protocol, the JSON control socket
// that QEMU calls a monitor. It knows commands, errors and events; what they
// mean is its caller's business.
//
// QEMU is trusted to be QEMU, but parts of what it says are shaped by the
// guest (how often an event comes, names inside it), so every read and every
// queue is bounded.
package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxMessage bounds one message from QEMU, in bytes. The largest answers that
// are asked for here (query-qmp-schema) have some 200 KiB.
const maxMessage = 1 << 20

// maxText bounds what is kept of a refusal's texts, in bytes: they go into errors.
const maxText = 1 << 10

// ErrEnded is matched by every error that the end of the connection causes.
var ErrEnded = errors.New("connection to QEMU ended")

// Error is QEMU's refusal of a command.
type Error struct {
	Command string
	// Class is GenericError for nearly everything; CommandNotFound and
	// DeviceNotFound are the others of use.
	Class string
	// Desc is for people. It may quote what the caller sent.
	Desc string
}

func (e *Error) Error() string {
	return fmt.Sprintf("qmp %s: %s (%s)", e.Command, e.Desc, e.Class)
}

// Client is one QMP connection in command mode. Its methods may be called
// from any goroutine.
type Client struct {
	conn net.Conn
	in   *bufio.Reader

	// writing and fileSlot are semaphores of one, so that waiting for them
	// ends with the context. A command with a file keeps fileSlot until its
	// reply: QEMU holds the last descriptor it received, and a second one
	// would take its place before the first command was looked at.
	writing  chan struct{}
	fileSlot chan struct{}

	events *eventQueue

	mu      sync.Mutex
	nextID  uint64
	pending map[string]*call // by the id sent
	err     error            // set before done is closed
	cause   string           // of QEMU's end, once it has told

	done chan struct{}
}

// call is a command whose reply has not come yet.
type call struct {
	reply    chan message // holds one, so that the reader never waits
	withFile bool
}

// message is anything that QEMU sends.
type message struct {
	QMP    json.RawMessage `json:"QMP"`
	ID     *string         `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

type request struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        string `json:"id"`
}

// New reads QEMU's greeting from conn, which it owns from then on, and enters
// command mode. ctx bounds that exchange only. After an error conn is closed.
func New(ctx context.Context, conn net.Conn) (*Client, error) {
	c := &Client{
		conn:     conn,
		in:       bufio.NewReaderSize(conn, 16<<10),
		writing:  make(chan struct{}, 1),
		fileSlot: make(chan struct{}, 1),
		pending:  make(map[string]*call),
		done:     make(chan struct{}),
	}
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	greeting, err := c.read()
	if !stop() && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err == nil && greeting.QMP == nil {
		err = errors.New("no greeting in the first message")
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("qmp greeting: %w", err)
	}
	c.events = newEventQueue()
	go c.readLoop()
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Execute runs one command and waits for its reply. args is marshalled to a
// JSON object; nil sends none. result, if not nil, takes the returned value.
//
// A refusal by QEMU is an *Error. When ctx ends first the command may still be
// carried out; its reply is then thrown away.
func (c *Client) Execute(ctx context.Context, command string, args, result any) error {
	return c.execute(ctx, command, args, result, nil)
}

// ExecuteWithFile is Execute with a file descriptor sent along, for getfd and
// add-fd. The connection must be a unix socket. QEMU gets a duplicate: file
// stays the caller's and can be closed at once.
func (c *Client) ExecuteWithFile(ctx context.Context, command string, args, result any, file *os.File) error {
	if file == nil {
		return fmt.Errorf("qmp %s: no file to send", command)
	}
	if _, ok := c.conn.(*net.UnixConn); !ok {
		return fmt.Errorf("qmp %s: cannot send a file over %T", command, c.conn)
	}
	select {
	case c.fileSlot <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("qmp %s: %w", command, ctx.Err())
	case <-c.done:
		return fmt.Errorf("qmp %s: %w", command, c.err)
	}
	return c.execute(ctx, command, args, result, file)
}

func (c *Client) execute(ctx context.Context, command string, args, result any, file *os.File) error {
	id, cl := c.register(file != nil)
	line, err := json.Marshal(request{Execute: command, Arguments: args, ID: id})
	if err == nil {
		err = c.write(ctx, append(line, '\n'), file, func() { c.forget(id) })
	} else {
		c.forget(id)
	}
	if err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}

	var reply message
	select {
	case reply = <-cl.reply:
	case <-ctx.Done():
		return fmt.Errorf("qmp %s: %w", command, ctx.Err())
	case <-c.done:
		// The reply may have come with the last bytes, as for quit.
		select {
		case reply = <-cl.reply:
		default:
			return fmt.Errorf("qmp %s: %w", command, c.err)
		}
	}
	if reply.Error != nil {
		e := reply.Error
		return &Error{Command: command, Class: e.Class[:min(len(e.Class), maxText)], Desc: e.Desc[:min(len(e.Desc), maxText)]}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(reply.Return, result); err != nil {
		return fmt.Errorf("qmp %s: returned value: %w", command, err)
	}
	return nil
}

// Events delivers QEMU's events in order. The channel is closed when the
// connection has ended and everything before that was received, or by Close.
//
// A caller that does not keep up loses events of no consequence first; SHUTDOWN,
// RESET, GUEST_PANICKED, DEVICE_DELETED and the like are kept, though not a
// second copy of one that still waits. A connection with hundreds of different
// ones waiting is given up.
func (c *Client) Events() <-chan Event { return c.events.out }

// Done is closed when the connection has ended, whoever ended it.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err says why the connection ended; it is nil before Done is closed and
// matches ErrEnded after.
func (c *Client) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// ShutdownCause is why QEMU is about to end, by its event SHUTDOWN: guest-reset,
// guest-shutdown or another ShutdownCause of QEMU's qapi/run-state.json. It is
// empty before that event, and of a QEMU that ended without one. It is complete
// once Done is closed.
func (c *Client) ShutdownCause() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}

func (c *Client) noteCause(data json.RawMessage) {
	var shutdown struct {
		Reason string `json:"reason"`
	}
	if json.Unmarshal(data, &shutdown) != nil {
		return // a SHUTDOWN without data tells of no cause
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cause = shutdown.Reason[:min(len(shutdown.Reason), maxText)]
}

// Close ends the connection and all waiting commands. It can be repeated.
func (c *Client) Close() error {
	c.end(errors.New("closed"))
	c.events.discard()
	return nil
}

func (c *Client) register(withFile bool) (string, *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextID++
	id := strconv.FormatUint(c.nextID, 10)
	cl := &call{reply: make(chan message, 1), withFile: withFile}
	c.pending[id] = cl
	return id, cl
}

// forget takes a call off the list, because it was answered or never sent.
func (c *Client) forget(id string) *call {
	c.mu.Lock()
	cl := c.pending[id]
	delete(c.pending, id)
	c.mu.Unlock()
	if cl != nil && cl.withFile {
		<-c.fileSlot
	}
	return cl
}

// write sends one line. unsent is called if nothing of it has gone out and
// nothing will. A line that went out in part ends the connection.
func (c *Client) write(ctx context.Context, line []byte, file *os.File, unsent func()) error {
	select {
	case c.writing <- struct{}{}:
	case <-ctx.Done():
		unsent()
		return ctx.Err()
	case <-c.done:
		unsent()
		return c.err
	}
	defer func() { <-c.writing }()
	if err := ctx.Err(); err != nil {
		unsent()
		return err
	}

	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.conn.SetWriteDeadline(time.Unix(1, 0))
		close(expired)
	})
	err := c.send(line, file)
	if !stop() {
		<-expired
		c.conn.SetWriteDeadline(time.Time{})
	}
	if err == nil {
		return nil
	}
	unsent()
	c.end(err)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return c.err
}

func (c *Client) send(line []byte, file *os.File) error {
	if file != nil {
		raw, err := file.SyscallConn() // unlike Fd, leaves a non-blocking file so
		if err != nil {
			return err
		}
		// The descriptor goes with the first bytes, which one sendmsg need
		// not exhaust.
		var n int
		var sendErr error
		err = raw.Control(func(fd uintptr) {
			n, _, sendErr = c.conn.(*net.UnixConn).WriteMsgUnix(line, unix.UnixRights(int(fd)), nil)
		})
		if err := errors.Join(err, sendErr); err != nil {
			return err
		}
		line = line[n:]
	}
	if len(line) == 0 {
		return nil
	}
	_, err := c.conn.Write(line)
	return err
}

// read returns QEMU's next message: one line, since QEMU ends each with a
// newline and puts none inside.
func (c *Client) read() (message, error) {
	var line []byte
	for {
		part, err := c.in.ReadSlice('\n')
		if len(line)+len(part) > maxMessage {
			return message{}, fmt.Errorf("message of more than %d bytes", maxMessage)
		}
		line = append(line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return message{}, err
		}
	}
	var m message
	if err := json.Unmarshal(bytes.TrimSpace(line), &m); err != nil {
		return message{}, fmt.Errorf("message: %w", err)
	}
	return m, nil
}

func (c *Client) readLoop() {
	for {
		m, err := c.read()
		if err == nil {
			err = c.dispatch(m)
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("closed by QEMU")
			}
			c.end(err)
			return
		}
	}
}

func (c *Client) dispatch(m message) error {
	switch {
	case m.Event != "":
		if m.Event == "SHUTDOWN" {
			c.noteCause(m.Data)
		}
		return c.events.put(Event{
			Name: m.Event,
			Data: m.Data,
			Time: time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000),
		})
	case m.ID == nil:
		// QEMU answers without the id only what it could not parse.
		if m.Error != nil {
			return fmt.Errorf("answer to no command: %s (%s)", m.Error.Desc, m.Error.Class)
		}
		return errors.New("message that is neither reply nor event")
	}
	cl := c.forget(*m.ID)
	if cl == nil {
		return fmt.Errorf("answer to unknown command %.32q", *m.ID)
	}
	cl.reply <- m
	return nil
}

// end ends the connection; the first cause stands.
func (c *Client) end(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = fmt.Errorf("%w: %w", ErrEnded, cause)
	c.conn.Close() // only wakes the reader; there is nothing left to lose
	close(c.done)
	c.events.finish()
}
