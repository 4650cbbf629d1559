package tests

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/dgm"
)

// A ledger holds putters and takers of one stream to account: each record that
// a putter had acknowledged is taken once, and in the putter's order.
type ledger struct {
	someLarge bool // of the records, see item.bytes

	file gearsfs.File
	key  gearsfs.Key

	mu    sync.Mutex
	put   []uint64                 // by putter: records 0 to put-1 were acknowledged
	taken map[item]gearsfs.Seq     // by whichever taker
	seqs  map[gearsfs.Seq]struct{} // of the records taken
	wrong []error
}

// An item is a record's content: who put it, and as which.
type item struct {
	putter uint32
	number uint64
}

func newLedger(path string, putters int) *ledger {
	return &ledger{
		file: gearsfs.At(path), key: "q", put: make([]uint64, putters),
		taken: make(map[item]gearsfs.Seq), seqs: make(map[gearsfs.Seq]struct{}),
	}
}

const itemBytes = 12

func (i item) appendTo(b []byte) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(b, i.putter), i.number)
}

// largeItemBytes is the length of an item that goes to the block store.
const largeItemBytes = 70_000

// bytes is the item as it is put; where some are to be large, some of the first
// ones are, and some later.
func (i item) bytes(someLarge bool) []byte {
	if someLarge && (i.number%512 == 0 || i.number < 64 && i.number%8 == 0) {
		return i.large()
	}
	return i.appendTo(nil)
}

func (i item) large() []byte {
	b := i.appendTo(make([]byte, 0, largeItemBytes))
	rand.NewChaCha8([32]byte{byte(i.putter), byte(i.number), byte(i.number >> 8)}).Read(b[itemBytes:largeItemBytes]) //nolint:errcheck // always nil
	return b[:largeItemBytes]
}

// itemOf reads an item back; ok says whether it is as it was put.
func itemOf(data []byte) (i item, ok bool) {
	if len(data) < itemBytes {
		return i, false
	}
	i = item{binary.BigEndian.Uint32(data), binary.BigEndian.Uint64(data[4:])}
	return i, len(data) == itemBytes || bytes.Equal(data, i.large())
}

// putSome puts the putter's next n records with one call.
func (l *ledger) putSome(ctx context.Context, m dgm.Manager, putter uint32, n int) error {
	l.mu.Lock()
	first := l.put[putter]
	l.mu.Unlock()
	records := make([]gearsfs.NewRecord, n)
	for i := range records {
		records[i].Data = item{putter, first + uint64(i)}.bytes(l.someLarge)
	}
	got, err := m.Put(ctx, dgm.Put{File: l.file, Key: l.key, Records: records})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.put[putter] += uint64(n)
	if got.Last-got.First+1 != gearsfs.Seq(n) {
		l.wrong = append(l.wrong, fmt.Errorf("%d records were put as %d to %d", n, got.First, got.Last))
	}
	return nil
}

// A taker remembers where it was: what it takes has rising seqs, as long as
// nothing is leased.
type taker struct {
	*ledger
	last gearsfs.Seq
}

// takeSome takes up to n records, waiting for the first, and writes them down.
func (t *taker) takeSome(ctx context.Context, m dgm.Manager, n int) error {
	records, err := m.Take(ctx, dgm.Take{File: t.file, Keys: []gearsfs.Key{t.key}, Max: n})
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range records {
		i, ok := itemOf(r.Data)
		if !ok {
			t.wrong = append(t.wrong, fmt.Errorf("record %d has %d bytes, and not those that were put", r.Place.Seq, len(r.Data)))
			continue
		}
		if before, twice := t.taken[i]; twice {
			t.wrong = append(t.wrong, fmt.Errorf("%v was taken as %d and as %d", i, before, r.Place.Seq))
		}
		if _, twice := t.seqs[r.Place.Seq]; twice {
			t.wrong = append(t.wrong, fmt.Errorf("record %d was taken twice", r.Place.Seq))
		}
		if r.Place.Seq <= t.last {
			t.wrong = append(t.wrong, fmt.Errorf("record %d was taken behind %d", r.Place.Seq, t.last))
		}
		t.taken[i], t.seqs[r.Place.Seq], t.last = r.Place.Seq, struct{}{}, r.Place.Seq
	}
	return nil
}

// seal ends the stream, so that takers end when they have taken everything.
func (l *ledger) seal(ctx context.Context, m dgm.Manager) error {
	_, err := m.Put(ctx, dgm.Put{File: l.file, Key: l.key, Seal: true})
	return err
}

// check returns what does not add up, when everything was put and taken.
func (l *ledger) check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	wrong := l.wrong
	total := 0
	for putter, n := range l.put {
		var last gearsfs.Seq
		for number := range n {
			i := item{uint32(putter), number}
			seq, ok := l.taken[i]
			switch {
			case !ok:
				wrong = append(wrong, fmt.Errorf("%v was acknowledged and is lost", i))
			case seq <= last:
				wrong = append(wrong, fmt.Errorf("%v is record %d, behind its putter's record %d", i, seq, last))
			}
			last = seq
		}
		total += int(n)
	}
	if len(l.taken) > total {
		wrong = append(wrong, fmt.Errorf("%d records were taken that nobody put", len(l.taken)-total))
	}
	return errors.Join(wrong[:min(len(wrong), 20)]...)
}
