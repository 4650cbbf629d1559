package payload

import (
	"context"
	"slices"
	"sync"

	"github.com/gearsfs/gearsfs"
)

// shipping has small payloads that come while others are on their way to the other
// members stored and sent as one: to bring one there wakes each member, and syncs its
// disk.
type shipping struct {
	mu      sync.Mutex
	waiting []*parcel // in the order in which they came
	ships   int       // goroutines that send them
}

const (
	parcelMax   = 64 << 10 // what is longer goes by itself
	shipmentMax = 1 << 20  // bytes of one
	shipsMax    = 2        // so that one is on disks while the other is on the wire
)

// parcel is a payload that goes with others.
type parcel struct {
	payload []byte
	extents []gearsfs.Extent
	err     error
	done    chan struct{} // extents or err are there
	left    bool          // nobody waits for it any more
}

var shipmentMemory = sync.Pool{New: func() any { b := make([]byte, 0, shipmentMax); return &b }}

// ship stores a payload of parcelMax at most here and at a majority, and returns its
// extents, which are pending.
func (k *Keeper) ship(ctx context.Context, payload []byte) ([]gearsfs.Extent, error) {
	s := &k.shipping
	p := &parcel{payload: payload, done: make(chan struct{})}
	s.mu.Lock()
	s.waiting = append(s.waiting, p)
	start := s.ships < shipsMax
	if start {
		s.ships++
	}
	s.mu.Unlock()
	if start && !k.cfg.Node.Spawn(k.shipAll) {
		k.shipNone()
	}
	select {
	case <-p.done:
		return p.extents, p.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-p.done:
		return p.extents, p.err
	default:
	}
	p.left = true
	s.waiting = slices.DeleteFunc(s.waiting, func(other *parcel) bool { return other == p })
	return nil, ctx.Err()
}

// shipAll sends what waits, until nothing does.
func (k *Keeper) shipAll() {
	memory := shipmentMemory.Get().(*[]byte)
	defer shipmentMemory.Put(memory)
	for {
		parcels, load := k.shipping.next(*memory)
		if len(parcels) == 0 {
			return
		}
		k.shipping.arrived(k, parcels, k.storeShipment(parcels, load))
	}
}

// next takes the parcels that go as one, and copies them to load.
func (s *shipping) next(load []byte) ([]*parcel, []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, p := range s.waiting {
		at := wholePages(len(load))
		if at+len(p.payload) > shipmentMax {
			break
		}
		load = append(append(load, make([]byte, at-len(load))...), p.payload...)
		n++
	}
	parcels := slices.Clone(s.waiting[:n])
	s.waiting = slices.Delete(s.waiting, 0, n)
	if n == 0 {
		s.ships--
	}
	return parcels, load
}

func wholePages(n int) int {
	return (n + gearsfs.PageBytes - 1) / gearsfs.PageBytes * gearsfs.PageBytes
}

// storeShipment stores parcels, which are in load one after the other, each from a page
// on, and gives each its extents.
func (k *Keeper) storeShipment(parcels []*parcel, load []byte) error {
	whole, err := k.append(load) // one, of less than gearsfs.RecordBytesMax
	if err != nil {
		return err
	}
	at := 0
	var all []gearsfs.Extent
	for _, p := range parcels {
		p.extents = []gearsfs.Extent{whole[0].Cut(uint64(at), uint64(len(p.payload)))}
		all = append(all, p.extents...)
		at += wholePages(len(p.payload))
	}
	k.pending.begin(all)
	err = k.spread(k.cfg.Busy, whole, load)
	if err != nil {
		k.drop(all)
	}
	if k.cfg.Busy.Err() != nil {
		return gearsfs.ErrClosed
	}
	return err
}

// arrived tells those who wait. What nobody waits for any more goes back.
func (s *shipping) arrived(k *Keeper, parcels []*parcel, err error) {
	var left []gearsfs.Extent
	s.mu.Lock()
	for _, p := range parcels {
		if p.err = err; err != nil {
			p.extents = nil
		} else if p.left {
			left = append(left, p.extents...)
		}
		close(p.done)
	}
	s.mu.Unlock()
	if len(left) > 0 {
		k.drop(left)
	}
}

// shipNone refuses what waits, because the node is closing.
func (k *Keeper) shipNone() {
	s := &k.shipping
	s.mu.Lock()
	s.ships--
	var parcels []*parcel
	if s.ships == 0 {
		parcels, s.waiting = s.waiting, nil
	}
	s.mu.Unlock()
	s.arrived(k, parcels, gearsfs.ErrClosed)
}
