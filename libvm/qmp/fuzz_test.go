package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// FuzzQEMU has QEMU say anything, from its first word or once the client is in
// command mode. A command ends, the connection ends, and so does the events' channel.
func FuzzQEMU(f *testing.F) {
	const ok = `{"return": {}, "id": "1"}` + "\n"
	f.Add([]byte(greeting+ok), false)
	f.Add([]byte(`{"QMP": null}`+"\n"), false)
	f.Add([]byte(`{"return": {"running": true}, "id": "2"}`+"\n"), true)
	f.Add([]byte(`{"event": "STOP", "timestamp": {"seconds": -1, "microseconds": 1e18}}`+"\n"+`{"error": {"class": "GenericError", "desc": "no"}, "id": "2"}`+"\n"), true)
	f.Add([]byte(`{"return": 1, "id": "2"}`+"\n"+`{"return": 1, "id": "2"}`+"\n"), true)
	f.Add([]byte(`{"error": null, "id": null}`+"\n"), true)
	f.Add([]byte(strings.Repeat(`{"event": "RESET", "data": {"guest": true}}`+"\n", maxKept)), true)
	f.Add([]byte(`{"event": "`+strings.Repeat("x", 1<<15)), true)
	f.Fuzz(func(t *testing.T, said []byte, greeted bool) {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		conn, qemu := net.Pipe()
		left := make(chan struct{}) // by QEMU's side
		go func() {
			defer close(left)
			defer qemu.Close()
			in := bufio.NewReader(qemu)
			if greeted {
				// An answer that came before its command would be a stranger's.
				io.WriteString(qemu, greeting)
				in.ReadSlice('\n')
				io.WriteString(qemu, ok)
				in.ReadSlice('\n')
			}
			go io.Copy(io.Discard, in)
			qemu.Write(said)
		}()
		c, err := New(ctx, conn)
		if greeted && err != nil {
			t.Fatalf("New = %v after a greeting", err)
		}
		if err != nil {
			if ctx.Err() != nil {
				t.Errorf("New = %v, after all was said", err)
			}
			<-left
			return
		}
		var result json.RawMessage
		err = c.Execute(ctx, "query-status", nil, &result)
		var refusal *Error
		switch {
		case ctx.Err() != nil:
			t.Errorf("Execute = %v, after all was said", err)
		case err == nil && !answered(said, result):
			t.Errorf("Execute = %s, which %q does not say", result, said)
		case errors.As(err, &refusal) && refusal.Command != "query-status":
			t.Errorf("Execute = %+v", refusal)
		}
		select {
		case <-c.Done():
		case <-ctx.Done():
			t.Fatal("the connection goes on without QEMU")
		}
		if !errors.Is(c.Err(), ErrEnded) {
			t.Errorf("Err = %v, want %v", c.Err(), ErrEnded)
		}
		events := 0
		for range c.Events() {
			events++
		}
		if most := bytes.Count(said, []byte("\n")); events > min(most, maxKept+1) {
			t.Errorf("%d events of %d lines", events, most)
		}
		<-left
	})
}

// answered says whether one of the lines is a reply to the second command.
func answered(said []byte, result json.RawMessage) bool {
	for line := range bytes.Lines(said) {
		var m message
		if json.Unmarshal(bytes.TrimSpace(line), &m) == nil && m.ID != nil && *m.ID == "2" && bytes.Equal(m.Return, result) {
			return true
		}
	}
	return false
}
