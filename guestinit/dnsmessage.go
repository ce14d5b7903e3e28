package main

import "encoding/binary"

// Bits of the second word of a DNS header, RFC 1035 section 4.1.1.
const (
	dnsResponse   = 1 << 15
	dnsTruncated  = 1 << 9
	dnsRecursion  = 1 << 7 // available
	dnsServerFail = 2
)

// failure turns a query into the response that says SERVFAIL.
func failure(query []byte) []byte {
	response := questionOnly(query)
	flags := binary.BigEndian.Uint16(response[2:])
	binary.BigEndian.PutUint16(response[2:], flags|dnsResponse|dnsRecursion|dnsServerFail)
	return response
}

// truncate makes a response that exceeds limit one that says so.
func truncate(response []byte, limit int) []byte {
	if len(response) <= limit {
		return response
	}
	short := questionOnly(response)
	if len(short) > limit { // more questions than anybody asks
		short = short[:dnsHeader]
		clear(short[4:])
	}
	flags := binary.BigEndian.Uint16(short[2:])
	binary.BigEndian.PutUint16(short[2:], flags|dnsTruncated)
	return short
}

// questionOnly copies a message up to the end of its questions, and up to its
// header if those cannot be made out.
func questionOnly(message []byte) []byte {
	end := dnsHeader
	questions := int(binary.BigEndian.Uint16(message[4:]))
	for range questions {
		next, ok := skipName(message, end)
		if !ok || next+4 > len(message) {
			end, questions = dnsHeader, 0
			break
		}
		end = next + 4 // type and class
	}
	short := append([]byte(nil), message[:end]...)
	binary.BigEndian.PutUint16(short[4:], uint16(questions))
	clear(short[6:dnsHeader])
	return short
}

// skipName returns the offset after the name at offset.
func skipName(message []byte, offset int) (int, bool) {
	for offset < len(message) {
		size := int(message[offset])
		switch {
		case size == 0:
			return offset + 1, true
		case size >= 0xc0: // a pointer ends a name
			return offset + 2, true
		}
		offset += 1 + size
	}
	return 0, false
}

// udpLimit is how long a response the sender of a query takes in a datagram:
// what its EDNS record says (RFC 6891), or 512 bytes.
func udpLimit(query []byte) int {
	const plain, optRecord, optSize = 512, 41, 11
	// The record is the only additional one of an ordinary query, with the
	// root as its name, so it follows the question.
	if len(query) < dnsHeader || binary.BigEndian.Uint16(query[10:]) == 0 {
		return plain
	}
	offset := dnsHeader
	for range binary.BigEndian.Uint16(query[4:]) {
		next, ok := skipName(query, offset)
		if !ok {
			return plain
		}
		offset = next + 4
	}
	if offset+optSize > len(query) || query[offset] != 0 || binary.BigEndian.Uint16(query[offset+1:]) != optRecord {
		return plain
	}
	return min(max(plain, int(binary.BigEndian.Uint16(query[offset+3:]))), maxUDP)
}
