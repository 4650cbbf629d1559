package file

import (
	"fmt"
	"slices"

	"github.com/gearsfs/gearsfs/wire"
)

// queueOp is one of the operations beyond put and take.
func (g *traffic) queueOp(s *trafficSession, key string) any {
	switch g.rng.IntN(14) {
	case 10, 11:
		return &wire.Move{Target: g.target(), Key: key, To: pick(g.rng, modelKeys), Max: g.rng.Uint64N(4)}
	case 12, 13:
		return &wire.CopyFile{From: g.target(), To: g.target()}
	case 3, 4, 5, 6:
		return g.transact(s)
	case 0, 1:
		op := &wire.Update{Target: g.target(), Key: key, Mode: 0o644, Record: g.record()}
		if g.rng.IntN(4) == 0 {
			op.IfSeq = ptr(g.rng.Uint64N(4))
		}
		return op
	case 2:
		return &wire.Configure{Target: g.target(), Key: key, Settings: g.settings()}
	default:
		op := &wire.Put{Target: g.target(), Key: key, Mode: 0o644}
		for range 1 + g.rng.IntN(4) {
			op.Records = append(op.Records, g.record())
		}
		return op
	}
}

// record makes a record with an id.
func (g *traffic) record() *wire.NewRecord {
	r := &wire.NewRecord{Data: make([]byte, g.rng.IntN(20)), Id: fmt.Sprint(g.rng.IntN(100)),
		Type: pick(g.rng, []string{"", "", "", "t"})}
	if g.rng.IntN(4) == 0 {
		r.Data, r.Extents = nil, g.stored()
	}
	return r
}

func (g *traffic) settings() *wire.Settings {
	set := &wire.Settings{Type: ptr(pick(g.rng, []string{"", "", "t"})), AppendOnly: ptr(g.rng.IntN(4) == 0)}
	if g.rng.IntN(2) == 0 {
		set.IdWindow = ptr(g.rng.Uint64N(100e6))
	}
	return set
}

// transact makes a transaction of few steps.
func (g *traffic) transact(s *trafficSession) *wire.Transact {
	var steps []any
	for range 1 + g.rng.IntN(4) {
		key := pick(g.rng, modelKeys)
		switch g.rng.IntN(8) {
		case 0, 1, 2:
			steps = append(steps, g.put(key))
		case 3, 4:
			steps = append(steps, &wire.Take{Target: g.target(), Keys: []string{key}, Max: 1 + g.rng.Uint32N(2), Lease: g.rng.IntN(2) == 0})
		case 5:
			steps = append(steps, &wire.Look{Target: g.target(), Key: key, Max: 3})
		case 6:
			steps = append(steps, &wire.Update{Target: g.target(), Key: key, Record: g.record()})
		case 7:
			if len(s.leased) > 0 {
				steps = append(steps, &wire.Settle{Receipts: s.leased[:1], Return: g.rng.IntN(2) == 0})
				s.leased = slices.Clone(s.leased[1:])
				break
			}
			steps = append(steps, &wire.Condition{Target: g.target(), Key: key, AtLeast: g.rng.Uint64N(2)})
		}
	}
	return tx(steps...)
}
