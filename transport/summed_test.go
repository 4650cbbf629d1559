package transport

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// random returns n bytes.
func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// sumsOf are those of the last bytes of a body.
func sumsOf(body []byte, last int) Sums {
	s := Sums{Last: last}
	for page := body[len(body)-last:]; len(page) > 0; page = page[min(len(page), summedPageBytes):] {
		sum := crc32.Checksum(page[:min(len(page), summedPageBytes)], castagnoli)
		s.Each = binary.LittleEndian.AppendUint32(s.Each, sum)
	}
	return s
}

// TestSumOfSums: it is the checksum of the bytes, whatever is in front of them.
func TestSumOfSums(t *testing.T) {
	for _, last := range []int{0, 1, 4095, 4096, 4097, 8192, 3*4096 + 100, 300_000} {
		for _, head := range []int{0, 1, 77, 5000} {
			body := random(head + last)
			sums := sumsOf(body, last)
			before := rand.Uint32()
			require.Equal(t, crc32.Update(before, castagnoli, body), frame{body: body, sums: &sums}.sum(before), "%d behind %d", last, head)
		}
	}
}

// TestStartSummed: a call with checksums arrives as any other does, and one whose
// checksums are others does not arrive.
func TestStartSummed(t *testing.T) {
	bodies := make(chan []byte, 1)
	addr := serveOn(t, "unix", serving(HandlerFunc(func(call *Call) {
		bodies <- call.Body()
		call.Reply(nil)
	})))
	ended := make(chan error, 1)
	done := func(_ []byte, err error) { ended <- err }
	c := dial(t, addr, Config{})
	for _, size := range []int{100, copyBytesMax, copyBytesMax + 1, 1<<20 + 99} {
		body := random(size + 55)
		c.StartSummed(body, sumsOf(body, size), done)
		require.NoError(t, <-ended)
		require.True(t, bytes.Equal(body, <-bodies), "%d bytes", size)
	}
	body := random(1 << 20)
	sums := sumsOf(body, 1<<20)
	body[77777]++
	c.StartSummed(body, sums, done)
	require.ErrorIs(t, <-ended, gearsfs.ErrProtocol)
	require.Empty(t, bodies)
}

// TestRecycle: the memory of a large call is that of the next one when its handler
// has given it back, and not before.
func TestRecycle(t *testing.T) {
	calls := make(chan *Call, 1)
	addr := serveOn(t, "unix", serving(HandlerFunc(func(call *Call) { calls <- call })))
	c := dial(t, addr, Config{})
	ended := make(chan error, 1)
	ask := func(size int) (*Call, []byte) {
		body := random(size)
		c.Start(body, func(_ []byte, err error) { ended <- err })
		call := <-calls
		require.True(t, bytes.Equal(body, call.Body()))
		return call, call.Body()
	}
	answer := func(call *Call) {
		call.Reply(nil)
		require.NoError(t, <-ended)
	}
	kept, first := ask(1 << 20)
	was := bytes.Clone(first)
	given, second := ask(1<<20 - 5)
	require.NotSame(t, unsafe.SliceData(first), unsafe.SliceData(second))
	given.Recycle()
	given.Recycle() // once is all that counts
	small, body := ask(100)
	require.NotSame(t, unsafe.SliceData(second), unsafe.SliceData(body))
	small.Recycle() // shares memory with others: it is left alone
	third, body := ask(1<<20 - 9)
	require.Same(t, unsafe.SliceData(second), unsafe.SliceData(body))
	fourth, body := ask(1<<20 - 9)
	require.NotSame(t, unsafe.SliceData(second), unsafe.SliceData(body))
	require.True(t, bytes.Equal(was, first), "of a call that was not given back")
	for _, call := range []*Call{kept, given, small, third, fourth} {
		answer(call)
	}
}
