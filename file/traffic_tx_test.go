package file

import (
	"fmt"

	"github.com/gearsfs/gearsfs/wire"
)

// queueOp is one of the operations beyond put and take.
func (g *traffic) queueOp(key string) any {
	switch g.rng.IntN(6) {
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
	return &wire.NewRecord{Data: make([]byte, g.rng.IntN(20)), Id: fmt.Sprint(g.rng.IntN(100)),
		Type: pick(g.rng, []string{"", "", "", "t"})}
}

func (g *traffic) settings() *wire.Settings {
	set := &wire.Settings{Type: ptr(pick(g.rng, []string{"", "", "t"})), AppendOnly: ptr(g.rng.IntN(4) == 0)}
	if g.rng.IntN(2) == 0 {
		set.IdWindow = ptr(g.rng.Uint64N(100e6))
	}
	return set
}
