package main

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/sockrelay"
)

// A behaviour is what a guest does to the host, and at which operation. With running that is once the reply to start has
// been sent, or for a behaviour that is about replies with each request from then on.
type behaviour struct {
	name string
	op   guestproto.Op
	arg  string
}

const running guestproto.Op = "running"

// parseBehaviour reads NAME[:OPERATION[:ARGUMENT]], or none.
func parseBehaviour(text string) behaviour {
	b := behaviour{op: running}
	var op string
	b.name, op, _ = strings.Cut(text, ":")
	if b.name == "none" {
		b.name = ""
	}
	op, b.arg, _ = strings.Cut(op, ":")
	if op != "" {
		b.op = guestproto.Op(op)
	}
	return b
}

// aboutReplies are the behaviours that strike with a request. The others are sudden: what they do is to the session.
var aboutReplies = []string{"silent", "huge", "over", "bound", "wrong-types", "long-text", "missing-text", "fails", "late", "resets", "extra-data", "hasty", "clients", "clients-pour"}

func (b behaviour) sudden() bool { return b.name != "" && !slices.Contains(aboutReplies, b.name) }

// pours says that the behaviour is about output: an exec's where its operation is exec.
func (b behaviour) pours() bool { return b.name == "endless" || b.name == "overrun" }

// strikes says whether the behaviour is about this request.
func (g *guest) strikes(op guestproto.Op) bool {
	b := g.behaviour
	if b.name == "" || b.pours() {
		return false
	}
	return b.op == op || b.op == running && !b.sudden() && g.started.Load()
}

// strike does it. True says that nobody else is to answer the request, which st has brought; st is nil where none has.
func (g *guest) strike(st *stream, req guestproto.Request) bool {
	b := g.behaviour
	if req.Op == guestproto.OpWait { // the end is what is answered
		<-g.process(decode[guestproto.WaitRequest](req.Body).Process).ended
	}
	if b.name == "frozen" { // it is frozen a moment later, and says nothing from now on
		g.writing.Lock()
		g.deaf.Store(true)
	}
	logf("%s strikes at %s", b.name, req.Op) // the tests wait for it
	switch b.name {
	case "silent": // takes the request and says nothing
	case "frozen": // nothing of PID 1 runs any more
		freeze()
	case "full": // nothing is read any more, and the host may send more than the port holds
		if stdin := g.process(guestproto.Init).stdin; stdin != nil {
			stdin.grant(1 << 31)
		}
		g.deaf.Store(true)
	case "floods-pings": // and reads no answer
		g.deaf.Store(true)
		go g.flood(func(n uint32) []byte { return header(typePing, flagSYN, 0, n) })
	case "opens-streams":
		go g.flood(func(n uint32) []byte { return header(typeWindow, flagSYN, 2*n+2, 0) })
	case "goaway":
		g.write(header(typeGoAway, 0, 0, 0))
		return false
	case "garbage":
		go g.garbage()
	case "bad-version":
		g.write([]byte{7, typePing, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0})
		return false
	case "bad-type":
		g.write(header(77, 0, 0, 0))
		return false
	case "huge": // a reply of 4 GiB, as far as the host takes it
		st.send([]byte{0xff, 0xff, 0xff, 0xff})
		go st.pour(false)
	case "huge-frame": // a yamux frame of 4 GiB
		g.write(header(typeData, flagACK, g.process(guestproto.Init).stdout.id, 0xffffffff))
		go g.garbage()
	case "over": // one byte more than a reply may have
		body, _ := g.honest(req)
		st.send(frame(padded(body, guestproto.MaxReply+1)))
		st.close()
	case "bound": // as much as a reply may have
		body, _ := g.honest(req)
		st.send(frame(padded(body, guestproto.MaxReply)))
		st.close()
	case "early": // answers on streams that the host has not opened yet
		last := g.process(guestproto.Init).stdout.id
		for id := last + 2; id < last+2000; id += 2 {
			g.write(append(header(typeData, flagACK, id, 6), frame([]byte("{}"))...))
			g.write(header(typeWindow, flagFIN, id, 0))
		}
		return false
	case "wrong-types":
		st.send(frame([]byte(wrongTypes[req.Op])))
		st.close()
	case "long-text":
		st.reply(guestproto.Errorf(b.code(), "%s", longText(220<<10)))
		st.close()
	case "missing-text":
		st.reply(guestproto.Errorf(b.code(), `exec: "sh": executable file not found in $PATH: no such file or directory: permission denied: is a directory`))
		st.close()
	case "fails":
		st.reply(guestproto.Errorf(b.code(), "the guest would not do it"))
		st.close()
	case "late":
		late, err := time.ParseDuration(b.arg)
		check("argument of late", err)
		time.Sleep(late)
		return false
	case "resets":
		st.reset()
	case "extra-data": // after a reply that is as it should be, as much as the host takes, and never an end
		body, _ := g.honest(req)
		st.reply(body)
		go st.pour(false)
		if req.Op == guestproto.OpStdio {
			g.attached(st, req.Body)
		}
	case "clients": // without end, each of which sends as much as it may, in pieces as small as can be, and takes nothing
		st.reply(guestproto.AcceptReply{})
		st.send(bytes.Repeat([]byte{0, 0, 0, 1, 'x'}, sockrelay.Window/5))
	case "clients-pour": // and what they send is no chunk
		st.reply(guestproto.AcceptReply{})
		go st.pour(false)
	case "endless", "overrun": // output without end, at full speed; and more of it than the host takes
		stdio := decode[guestproto.StdioRequest](req.Body) // of the container init where nobody asks
		if stdout := g.process(stdio.Process).stdout; stdout != nil {
			go stdout.pour(b.name == "overrun")
		}
	case "dies": // and has the kernel's last words be what callers parse
		logf("%s", longText(2<<10))
		logf("exec failed: no such file or directory")
		os.Exit(0)
	default:
		check("behaviour", guestproto.Errorf(guestproto.CodeBadRequest, "there is no %q", b.name))
	}
	return true
}

// code is the argument of an error's behaviour.
func (b behaviour) code() guestproto.Code {
	if b.arg == "" {
		return guestproto.CodeInternal
	}
	return guestproto.Code(b.arg)
}

// freeze stops all threads of this process: its cgroup's freezer does, which stops PID 1 too.
func freeze() {
	const dir = "/sys/fs/cgroup/frozen"
	check("make a cgroup", os.Mkdir(dir, 0o755))
	check("enter the cgroup", os.WriteFile(dir+"/cgroup.procs", []byte("1"), 0))
	check("freeze", os.WriteFile(dir+"/cgroup.freeze", []byte("1"), 0))
}

// flood sends small frames for ever, many with each write.
func (g *guest) flood(frame func(n uint32) []byte) {
	for n := uint32(0); ; {
		var many []byte
		for range 1000 {
			many = append(many, frame(n)...)
			n++
		}
		g.write(many)
	}
}

// garbage sends what is no frame for ever.
func (g *guest) garbage() {
	random := rand.NewChaCha8([32]byte{1: 'x'})
	b := make([]byte, chunk)
	for {
		_, _ = random.Read(b) // it never fails
		b[0] |= 1             // of no version that there is
		g.write(b)
	}
}

// pour fills a stream for as long as the host takes it, or whatever it takes.
func (st *stream) pour(beyond bool) {
	b := bytes.Repeat([]byte("all work and no play\n"), chunk/21)
	for {
		if beyond {
			st.push(b)
		} else if !st.send(b) {
			return
		}
	}
}

// padded is a reply with as many bytes.
func padded(body any, size int) []byte {
	if stats, ok := body.(guestproto.StatsReply); ok {
		stats.Memory.Detail = map[string]uint64{}
		for n := range uint64(10000) {
			stats.Memory.Detail["n"+strings.Repeat("x", int(n%7))+time.Duration(n).String()] = n
		}
		body = stats
	}
	raw, _ := json.Marshal(body)
	text, _ := json.Marshal(guestproto.Reply{Body: raw})
	return append(text, bytes.Repeat([]byte(" "), size-len(text))...)
}

// wrongTypes are replies that are no JSON, or another's.
var wrongTypes = map[guestproto.Op]string{
	guestproto.OpHello:   `{"body":{"version":"four"}}`,
	guestproto.OpCreate:  `[]`,
	guestproto.OpStdio:   `"stdio"`,
	guestproto.OpStart:   `{"error":"text"}`,
	guestproto.OpExec:    `{"error":{"message":7}}`,
	guestproto.OpWait:    `{"body":{"code":1e99}}`,
	guestproto.OpSignal:  `7`,
	guestproto.OpResize:  `{"error":{"message":[]}}`,
	guestproto.OpUpdate:  `}{`,
	guestproto.OpStats:   `{"body":{"cpu":[]}}`,
	guestproto.OpOOM:     `{"body":{"kills":-1}}`,
	guestproto.OpClock:   `{"error":{"code":{}}}`,
	guestproto.OpNetwork: `true`,
}

// longText is of about as many bytes: what moves a terminal, what looks like a line of a log, and what nobody sees.
func longText(size int) string {
	part := "\x1b]0;owned\x07\x1b[2J\r\ntime=\"2026-01-01T00:00:00Z\" level=error msg=\"no such file or directory\"\n\x00\x7f\u009b31m\u202e" + strings.Repeat("x", 200)
	return strings.Repeat(part, size/len(part)+1)[:size]
}
