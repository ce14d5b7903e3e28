package main

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
)

// dnsQuery is a question for the A record of name, with an EDNS size if not 0.
func dnsQuery(id uint16, name string, edns uint16) []byte {
	m := binary.BigEndian.AppendUint16(nil, id)
	m = append(m, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, byte(len(name)))
	m = append(append(m, name...), 0, 0, 1, 0, 1)
	if edns != 0 {
		m[11] = 1
		m = append(m, 0, 0, 41)
		m = binary.BigEndian.AppendUint16(m, edns)
		m = append(m, 0, 0, 0, 0, 0, 0)
	}
	return m
}

// TestDNSRelay answers two queries with the same id in the wrong order.
func TestDNSRelay(t *testing.T) {
	host, guest := net.Pipe()
	d := &dnsRelay{}
	attached := make(chan struct{})
	go func() { close(attached); d.attach(guest) }()
	<-attached
	answers := make(chan string, 2)
	go func() {
		for d.ask(dnsQuery(7, "one", 0), func(m []byte) { answers <- string(m[13:16]) + string(m[:2]) }) != nil {
		}
		_ = d.ask(dnsQuery(7, "two", 0), func(m []byte) { answers <- string(m[13:16]) + string(m[:2]) })
	}()
	var queries [][]byte
	for range 2 {
		m, err := readDNS(host)
		if err != nil {
			t.Fatal(err)
		}
		queries = append(queries, m)
	}
	if bytes.Equal(queries[0][:2], queries[1][:2]) {
		t.Error("both queries have the same id on the stream")
	}
	for _, i := range []int{1, 0} {
		framed := binary.BigEndian.AppendUint16(nil, uint16(len(queries[i])))
		if _, err := host.Write(append(framed, queries[i]...)); err != nil {
			t.Fatal(err)
		}
	}
	if first, second := <-answers, <-answers; first != "two\x00\x07" || second != "one\x00\x07" {
		t.Errorf("answers = %q, %q", first, second)
	}
	host.Close()
}

func TestDNSMessages(t *testing.T) {
	query := dnsQuery(7, "name", 1232)
	if got := udpLimit(query); got != 1232 {
		t.Errorf("udpLimit = %d, want 1232", got)
	}
	if got := udpLimit(dnsQuery(7, "name", 0)); got != 512 {
		t.Errorf("udpLimit without EDNS = %d, want 512", got)
	}
	if got := failure(query); got[3]&0xf != dnsServerFail || got[2]&0x80 == 0 || len(got) != len(dnsQuery(7, "name", 0)) || got[11] != 0 {
		t.Errorf("failure = %x", got)
	}
	long := append(dnsQuery(7, "name", 0), make([]byte, 600)...)
	if got := truncate(long, 512); len(got) > 512 || got[2]&2 == 0 {
		t.Errorf("truncate = %x", got)
	}
	many := append([]byte{0, 1, 0x80, 0, 0, 100, 0, 0, 0, 0, 0, 0}, bytes.Repeat([]byte{0xc0, 12, 0, 1, 0, 1}, 100)...)
	if got := truncate(many, 512); !bytes.Equal(got, []byte{0, 1, 0x82, 0, 0, 0, 0, 0, 0, 0, 0, 0}) {
		t.Errorf("truncate of 100 questions = %x, want the header", got)
	}
	if got := truncate(query, 512); !bytes.Equal(got, query) {
		t.Error("truncate changes what fits")
	}
	// Whatever a container sends must not crash the relay.
	for n := dnsHeader; n < len(query); n++ {
		udpLimit(query[:n])
		failure(query[:n])
	}
}
