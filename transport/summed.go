package transport

import (
	"encoding/binary"
	"hash/crc32"
	"sync"
)

// summedPageBytes is the unit of Sums.
const summedPageBytes = 4096

// Sums are checksums that the last bytes of a call's body have already, as those of a
// block have. The checksum of the frame is made of these: so who sends a block to several
// members sums it once, and what changes in memory behind that is noticed, too.
type Sums struct {
	Last int    // bytes of the body
	Each []byte // CRC-32C of each 4,096 of them, and of the rest, little-endian
}

// StartSummed is Start of a call whose body has checksums. Where they are not those of
// its bytes the peer ends the connection; a body that is short is summed all the same.
func (c *Conn) StartSummed(body []byte, sums Sums, done func(answer []byte, err error)) *Pending {
	p := &Pending{conn: c, body: body, sums: &sums, done: done}
	c.begin(p)
	return p
}

// sum is the checksum of a frame whose body comes behind what crc is of.
func (f frame) sum(crc uint32) uint32 {
	if f.sums == nil {
		return crc32.Update(crc, castagnoli, f.body)
	}
	head := len(f.body) - f.sums.Last
	crc = crc32.Update(crc, castagnoli, f.body[:head])
	last, sums := f.body[head:], f.sums.Each
	for len(last) >= summedPageBytes {
		crc = behindPage(crc) ^ binary.LittleEndian.Uint32(sums)
		last, sums = last[summedPageBytes:], sums[4:]
	}
	return crc32.Update(crc, castagnoli, last)
}

// behindPage is what the checksum of some bytes contributes to that of them and a
// page behind them: crc(AB) = behind(crc(A)) ^ crc(B), and behind is linear, so it is
// put together from what it makes of each byte of a checksum.
func behindPage(crc uint32) uint32 {
	t := behindPageTables()
	return t[0][byte(crc)] ^ t[1][byte(crc>>8)] ^ t[2][byte(crc>>16)] ^ t[3][byte(crc>>24)]
}

var behindPageTables = sync.OnceValue(func() *[4][256]uint32 {
	zeros := make([]byte, summedPageBytes)
	alone := crc32.Checksum(zeros, castagnoli)
	t := new([4][256]uint32)
	for bit := range 32 {
		made := crc32.Update(1<<bit, castagnoli, zeros) ^ alone
		row := &t[bit/8]
		for b := range row {
			if b>>(bit%8)&1 != 0 {
				row[b] ^= made
			}
		}
	}
	return t
})
