package sockrelay

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
)

// MaxPacket is the longest that UDP has, in bytes.
const MaxPacket = 1<<16 - 1

// WritePacket sends one packet, as a single write.
func WritePacket(stream io.Writer, packet []byte) error {
	message := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(packet)), uint16(len(packet)))
	_, err := stream.Write(append(message, packet...))
	return err
}

// ReadPacket reads one packet into buf, which has room for any.
func ReadPacket(stream io.Reader, buf []byte) (int, error) {
	var head [2]byte
	if _, err := io.ReadFull(stream, head[:]); err != nil {
		return 0, err
	}
	return io.ReadFull(stream, buf[:binary.BigEndian.Uint16(head[:])])
}

// JoinPackets carries the packets of a connected socket over a stream until either
// ends. It closes both. A packet that the socket does not take is lost, as packets are.
func JoinPackets(conn *net.UDPConn, stream io.ReadWriteCloser) {
	var both sync.WaitGroup
	both.Go(func() {
		buf := make([]byte, MaxPacket)
		for {
			n, err := ReadPacket(stream, buf)
			if err != nil {
				break
			}
			_, _ = conn.Write(buf[:n])
		}
		_ = conn.Close() // ends the other half
	})
	buf := make([]byte, MaxPacket)
	for {
		n, err := conn.Read(buf)
		if err != nil || WritePacket(stream, buf[:n]) != nil {
			break
		}
	}
	_ = stream.Close()
	both.Wait()
}
