package transport

import (
	"bytes"
	"encoding/binary"
	"io"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// someReader gives out at most n bytes at once.
type someReader struct {
	from io.Reader
	n    int
}

func (r someReader) Read(p []byte) (int, error) { return r.from.Read(p[:min(len(p), r.n)]) }

// readAll cuts a stream into frames, n bytes at a time.
func readAll(stream []byte, bytesMax, n int) (frames []frame, err error) {
	r := newFrameReader(bytesMax)
	src := someReader{bytes.NewReader(stream), n}
	for {
		f, ok, err := r.next()
		switch {
		case err != nil:
			return frames, err
		case ok:
			frames = append(frames, f)
			continue
		}
		if _, err := r.fill(src); err != nil {
			return frames, err
		}
	}
}

func TestFramesComeBack(t *testing.T) {
	sizes := []int{0, 1, 127, 128, copyBytesMax, copyBytesMax + 1, directBytes - overheadBytes, directBytes, readBufferBytes, 3 * readBufferBytes, 0, 5}
	var sent []frame
	var stream []byte
	for i, size := range sizes {
		f := frame{id: uint64(i) << 40, kind: kind(i), body: bytes.Repeat([]byte{byte(i)}, size)}
		sent = append(sent, f)
		stream = f.append(stream)
	}
	for _, n := range []int{1, 7, 4096, len(stream)} {
		got, err := readAll(stream, 1<<20, n)
		require.ErrorIs(t, err, io.EOF)
		require.Len(t, got, len(sent))
		for i := range got {
			require.Equal(t, sent[i].id, got[i].id)
			require.Equal(t, sent[i].kind, got[i].kind)
			require.True(t, bytes.Equal(sent[i].body, got[i].body), "body of frame %d", i)
		}
	}
}

func TestWriterEncodesAsAppend(t *testing.T) {
	var w writer
	var want, got []byte
	for i, size := range []int{3, copyBytesMax + 1, 0, copyBytesMax, 100_000, 100_000, 20} {
		f := frame{id: uint64(i), kind: kindResponse, body: bytes.Repeat([]byte{byte(i)}, size)}
		w.batch = append(w.batch, f)
		want = f.append(want)
	}
	for w.next < len(w.batch) || w.sumDue {
		w.encode()
		got = append(append(got, w.left...), w.body...)
		w.body = nil
	}
	require.True(t, bytes.Equal(want, got))
}

// TestBodiesAreNotReused keeps every body while the read buffer is used again.
func TestBodiesAreNotReused(t *testing.T) {
	var stream []byte
	for i := range 3000 {
		stream = frame{kind: kindRequest, body: bytes.Repeat([]byte{byte(i)}, i%300)}.append(stream)
	}
	frames, _ := readAll(stream, 1<<20, 5000)
	require.Len(t, frames, 3000)
	for i, f := range frames {
		require.Equal(t, bytes.Repeat([]byte{byte(i)}, i%300), append([]byte{}, f.body...))
	}
}

func TestFrameLengths(t *testing.T) {
	const bytesMax = 1 << 20
	for _, c := range []struct {
		name   string
		length uint32
		bad    bool
	}{
		{"none", 0, true},
		{"less than a header", overheadBytes - lengthBytes - 1, true},
		{"an empty body", overheadBytes - lengthBytes, false},
		{"the most", bytesMax - lengthBytes, false},
		{"one more", bytesMax - lengthBytes + 1, true},
		{"all ones", 1<<32 - 1, true},
		{"GET ", binary.BigEndian.Uint32([]byte("GET ")), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := readAll(binary.BigEndian.AppendUint32(nil, c.length), bytesMax, 10)
			if c.bad {
				require.ErrorIs(t, err, gearsfs.ErrProtocol)
			} else {
				require.ErrorIs(t, err, io.EOF)
			}
		})
	}
}

// TestLengthIsCheckedBeforeAllocation has many streams claim a gigabyte.
func TestLengthIsCheckedBeforeAllocation(t *testing.T) {
	stream := append(binary.BigEndian.AppendUint32(nil, 1<<30), make([]byte, 100)...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 16 {
		_, err := readAll(stream, 1<<20, 10)
		require.ErrorIs(t, err, gearsfs.ErrProtocol)
	}
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<20))
}

// FuzzFrameReader checks that what is cut out of any stream is what was in it,
// however it arrives.
func FuzzFrameReader(f *testing.F) {
	whole := frame{id: 7, kind: kindRequest, body: []byte("body")}.append(nil)
	f.Add(whole, 3)
	f.Add(frame{kind: kindPing}.append(whole), 1)
	f.Add(frame{kind: kindResponse, body: make([]byte, directBytes)}.append(nil), 1000)
	f.Add(frame{kind: kindHello, body: hello{callsMax: 1, windowBytes: 1 << 20, frameBytes: 1 << 15, identity: []byte("x")}.append(nil)}.append(nil), 5)
	f.Add(whole[:len(whole)-1], 2)
	f.Add([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), 9)
	f.Add([]byte{0, 0, 0, 13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 4)
	f.Fuzz(func(t *testing.T, stream []byte, n int) {
		const bytesMax = 1 << 16
		n = max(1, n)
		frames, err := readAll(stream, bytesMax, n)
		var again []byte
		for _, f := range frames {
			if f.bytes() > bytesMax {
				t.Fatalf("a frame of %d bytes", f.bytes())
			}
			again = f.append(again)
		}
		if !bytes.HasPrefix(stream, again) {
			t.Fatalf("the frames are not what was sent")
		}
		atOnce, errAtOnce := readAll(stream, bytesMax, len(stream)+1)
		if len(atOnce) != len(frames) || gearsfs.CodeOf(err) != gearsfs.CodeOf(errAtOnce) {
			t.Fatalf("%d frames and %v in pieces, %d and %v at once", len(frames), err, len(atOnce), errAtOnce)
		}
		for _, f := range frames {
			if h, err := parseHello(f.body); err == nil && !bytes.HasPrefix(f.body, h.append(nil)) {
				t.Fatalf("hello %+v was %x", h, f.body)
			}
			if code, reason, err := parseError(f.body); err == nil && !bytes.HasPrefix(f.body[4:], []byte(reason)) {
				t.Fatalf("error %d %q was %x", code, reason, f.body)
			}
		}
	})
}
