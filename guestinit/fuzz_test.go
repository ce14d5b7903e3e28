package main

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// FuzzDNSMessage is what a container writes for a query, or its network for a
// response: both are answered with a message that fits and parses.
func FuzzDNSMessage(f *testing.F) {
	query := dnsQuery(7, "name", 1232)
	f.Add(query, uint16(512))
	f.Add(append(dnsQuery(7, "name", 0), make([]byte, 600)...), uint16(512))
	f.Add(append([]byte{0, 1, 0x80, 0, 0, 100, 0, 0, 0, 0, 0, 1}, bytes.Repeat([]byte{0xc0, 12, 0, 1, 0, 1}, 100)...), uint16(512))
	f.Fuzz(func(t *testing.T, message []byte, limit uint16) {
		if len(message) < dnsHeader {
			return
		}
		before := bytes.Clone(message)
		most := max(512, int(limit))
		for what, got := range map[string][]byte{"failure": failure(message), "truncate": truncate(message, most), "questionOnly": questionOnly(message)} {
			if len(got) < dnsHeader || len(got) > len(message) || !bytes.Equal(got[:2], message[:2]) {
				t.Errorf("%s(% x) = % x", what, message, got)
			}
			if bytes.Equal(got, message) {
				continue
			}
			if questions := binary.BigEndian.Uint16(got[4:]); questions != 0 && questions != binary.BigEndian.Uint16(message[4:]) ||
				!bytes.Equal(got[6:dnsHeader], make([]byte, 6)) || !bytes.Equal(got[dnsHeader:], message[dnsHeader:len(got)]) {
				t.Errorf("%s(% x) = % x", what, message, got)
			}
		}
		if got := truncate(message, most); len(got) > most {
			t.Errorf("truncate(% x, %d) has %d bytes", message, most, len(got))
		}
		if got := udpLimit(message); got < 512 || got > maxUDP {
			t.Errorf("udpLimit(% x) = %d", message, got)
		}
		if !bytes.Equal(message, before) {
			t.Errorf("% x was changed to % x", before, message)
		}
	})
}
