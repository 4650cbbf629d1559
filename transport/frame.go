package transport

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"sync/atomic"

	"github.com/gearsfs/gearsfs"
)

// kind says what a frame means. Kinds are never renumbered.
type kind uint8

const (
	kindHello    kind = 1
	kindRequest  kind = 2
	kindResponse kind = 3
	kindFailure  kind = 4
	kindCancel   kind = 5
	kindPing     kind = 6
	kindPong     kind = 7
	kindWindow   kind = 8
	kindGoaway   kind = 9

	// kindIgnorable is the bit that lets a receiver pass over a kind that it
	// does not know. Without it an unknown kind ends the conversation.
	kindIgnorable kind = 0x80

	// An older peer passes over notices.
	kindNotice = 1 | kindIgnorable
)

// Sizes of a frame's parts, as drawn in doc.go.
const (
	lengthBytes   = 4
	headerBytes   = lengthBytes + 8 + 1
	trailerBytes  = 4
	overheadBytes = headerBytes + trailerBytes
)

const (
	readBufferBytes = 64 << 10
	// directBytes is the size from which a frame is read into memory of its
	// own instead of being copied out of the read buffer.
	directBytes = 16 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frame is one message. The body of a decoded frame belongs to its receiver.
type frame struct {
	id   uint64
	kind kind
	body []byte
	sums *Sums // nil of most, and of what is received
}

// bytes is the size of f on the wire.
func (f frame) bytes() int { return overheadBytes + len(f.body) }

// appendHeader appends what comes before f's body.
func (f frame) appendHeader(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(f.bytes()-lengthBytes))
	dst = binary.BigEndian.AppendUint64(dst, f.id)
	return append(dst, byte(f.kind))
}

// append appends f as it travels. The body must not exceed 1 GiB.
func (f frame) append(dst []byte) []byte {
	start := len(dst)
	dst = append(f.appendHeader(dst), f.body...)
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

// frameReader cuts a stream of bytes into frames. It never reads by itself:
// fill makes one Read, next takes what is whole, so that its owner can do other
// things before it has to wait. Not safe for concurrent use.
//
// Invariants:
//
//  1. lo <= hi <= len(buf); what was read and not yet cut is buf[lo:hi], or
//     big[:bigRead] where big is not nil, never both.
//  2. No memory is taken for a frame before its length was checked against
//     bytesMax.
type frameReader struct {
	bytesMax int // whole frame
	buf      []byte
	lo, hi   int
	big      []byte // a large frame under way, at its full size
	bigRead  int
	handed   []byte                 // all memory of the frame that next returned, where that is large
	spare    atomic.Pointer[[]byte] // for the next of these, see Call.Recycle
}

func newFrameReader(bytesMax int) *frameReader {
	return &frameReader{bytesMax: bytesMax, buf: make([]byte, readBufferBytes)}
}

// next returns the next frame, or false where it is not all there. The error is
// gearsfs.ErrProtocol: the stream is not one of frames, or was damaged, and
// nothing behind it can be trusted.
func (r *frameReader) next() (frame, bool, error) {
	r.handed = nil
	if r.big != nil {
		if r.bigRead < len(r.big) {
			return frame{}, false, nil
		}
		whole := r.big
		r.big, r.handed = nil, whole
		return parseFrame(whole, false)
	}
	there := r.buf[r.lo:r.hi]
	if len(there) < lengthBytes {
		return frame{}, false, nil
	}
	size := uint64(binary.BigEndian.Uint32(there)) + lengthBytes
	switch {
	case size < overheadBytes:
		return frame{}, false, gearsfs.ErrProtocol.Because("a frame of %d bytes is shorter than its header", size)
	case size > uint64(r.bytesMax):
		return frame{}, false, gearsfs.ErrProtocol.Because("a frame of %d bytes, at most %d are accepted", size, r.bytesMax)
	case size <= uint64(len(there)):
		r.lo += int(size)
		return parseFrame(there[:size], true)
	case size > directBytes:
		r.big = r.memory(int(size))
		r.bigRead = copy(r.big, there)
		r.lo, r.hi = 0, 0
	}
	return frame{}, false, nil
}

// sparedBytesMax is up to how much memory a connection keeps for the next large
// frame: a block of 1 MiB and what says where it belongs.
const sparedBytesMax = 1<<20 + 64<<10

// memory returns memory for a frame: what the last one of that size had, where that was
// given back. Fresh memory is zeroed and faulted in page by page first, which for a
// block costs as much as reading it.
func (r *frameReader) memory(size int) []byte {
	if size > sparedBytesMax {
		return make([]byte, size)
	}
	if spare := r.spare.Swap(nil); spare != nil && cap(*spare) >= size {
		return (*spare)[:size]
	}
	return make([]byte, size)
}

// recycle takes the memory of a frame that nobody uses any more.
func (r *frameReader) recycle(memory []byte) {
	if cap(memory) <= sparedBytesMax {
		r.spare.Store(&memory)
	}
}

// fill reads once from src and returns how many bytes came; an error comes
// without any. It is to be called after next returned false.
func (r *frameReader) fill(src io.Reader) (int, error) {
	if r.big != nil {
		n, err := src.Read(r.big[r.bigRead:])
		r.bigRead += n
		return n, readError(n, err)
	}
	if r.lo > 0 {
		r.hi = copy(r.buf, r.buf[r.lo:r.hi])
		r.lo = 0
	}
	n, err := src.Read(r.buf[r.hi:])
	r.hi += n
	return n, readError(n, err)
}

// readError puts an error off that came together with bytes: Read gives it
// again.
func readError(n int, err error) error {
	if n > 0 {
		return nil
	}
	return err
}

// midFrame tells whether a part of a frame is there.
func (r *frameReader) midFrame() bool { return r.big != nil || r.hi > r.lo }

// parseFrame checks and decodes one whole frame; with copied set the body is a
// copy, else a part of whole.
func parseFrame(whole []byte, copied bool) (frame, bool, error) {
	end := len(whole) - trailerBytes
	if sum := binary.BigEndian.Uint32(whole[end:]); sum != crc32.Checksum(whole[:end], castagnoli) {
		return frame{}, false, gearsfs.ErrProtocol.Because("the checksum of a frame does not match")
	}
	f := frame{
		id:   binary.BigEndian.Uint64(whole[lengthBytes:]),
		kind: kind(whole[headerBytes-1]),
	}
	switch {
	case end == headerBytes:
	case copied:
		f.body = append([]byte(nil), whole[headerBytes:end]...)
	default:
		f.body = whole[headerBytes:end:end]
	}
	return f, true, nil
}
