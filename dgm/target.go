package dgm

import (
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// fileOf is a file that a command is about: path says where it is, or "" that
// target does.
type fileOf struct {
	path   string
	target **wire.Target
	step   int // of a transaction, counted from 1
}

// filesOf are the files that a change is about and that may be named by paths.
func filesOf(ch *wire.Change) []fileOf {
	switch op := ch.Command.Op.(type) {
	case *wire.Command_Put:
		return []fileOf{{path: ch.Path, target: &op.Put.Target}}
	case *wire.Command_Take:
		return []fileOf{{path: ch.Path, target: &op.Take.Target}}
	case *wire.Command_Configure:
		return []fileOf{{path: ch.Path, target: &op.Configure.Target}}
	case *wire.Command_Update:
		return []fileOf{{path: ch.Path, target: &op.Update.Target}}
	case *wire.Command_Move:
		return []fileOf{{path: ch.Path, target: &op.Move.Target}}
	case *wire.Command_CopyFile:
		return []fileOf{{path: pathAt(ch, 0), target: &op.CopyFile.From}, {path: pathAt(ch, 1), target: &op.CopyFile.To}}
	case *wire.Command_Transact:
		files := make([]fileOf, 0, len(op.Transact.Steps))
		for i, step := range op.Transact.Steps {
			if target := stepTarget(step); target != nil {
				files = append(files, fileOf{pathAt(ch, i), target, i + 1})
			}
		}
		return files
	}
	return nil
}

// pathAt is one of the paths of a change; "" where there are fewer.
func pathAt(ch *wire.Change, i int) string {
	if i >= len(ch.Paths) {
		return ""
	}
	return ch.Paths[i]
}

// stepTarget is where a step says which file it is about, nil where it does not.
func stepTarget(step *wire.Step) **wire.Target {
	switch op := step.Op.(type) {
	case *wire.Step_Condition:
		return &op.Condition.Target
	case *wire.Step_Take:
		return &op.Take.Target
	case *wire.Step_Look:
		return &op.Look.Target
	case *wire.Step_Update:
		return &op.Update.Target
	case *wire.Step_Put:
		return &op.Put.Target
	}
	return nil
}

// resolveAll fills in the targets of an operation's command.
func (t *tenure) resolveAll(o *op) error {
	for _, f := range filesOf(o.change) {
		if err := t.resolve(o.sess, f.path, f.target); err != nil {
			switch {
			case f.step != 0 && f.path != "":
				return fmt.Errorf("step %d: %s: %w", f.step, f.path, err)
			case f.step != 0:
				return fmt.Errorf("step %d: %w", f.step, err)
			}
			return err
		}
	}
	return nil
}

// resolve fills in a command's target where it was named by a path.
func (t *tenure) resolve(s *session, path string, target **wire.Target) error {
	if path == "" {
		if *target == nil {
			return gearsfs.ErrInvalid.Because("the request names no file")
		}
		return nil
	}
	names := t.vol.machine.Names() // before the path is followed
	if *target = s.trails.find(path, names); *target != nil {
		return nil
	}
	dir, name, ino, err := t.vol.machine.ResolveTarget(path, s.caller)
	if err != nil {
		return err
	}
	if ino != 0 {
		*target = &wire.Target{Ino: uint64(ino)}
		s.trails.note(path, names, *target)
	} else {
		*target = &wire.Target{Dir: uint64(dir), Name: name}
	}
	return nil
}

// trails remembers where the paths led that a session has named of late: it goes on
// naming the same few. What is remembered holds as long as file.Machine.Names says
// that nothing has changed by which a path may lead elsewhere, for this session's
// caller. Targets are shared by all who find them and never changed.
//
// It may be used by several goroutines at once. The zero trails knows nothing.
type trails struct {
	known [4]atomic.Pointer[trail]
	next  atomic.Uint32 // the one to be forgotten
}

type trail struct {
	path   string
	names  uint64
	target *wire.Target
}

// trailBytesMax is up to which length paths are remembered.
const trailBytesMax = 256

// find returns where a path leads, nil where that is not known any more.
func (w *trails) find(path string, names uint64) *wire.Target {
	for i := range w.known {
		if k := w.known[i].Load(); k != nil && k.names == names && k.path == path {
			return k.target
		}
	}
	return nil
}

// note remembers where a path led when Names had this value.
func (w *trails) note(path string, names uint64, target *wire.Target) {
	if len(path) > trailBytesMax {
		return
	}
	known := &trail{path: strings.Clone(path), names: names, target: target} // path is a part of a request
	for i := range w.known {
		if k := w.known[i].Load(); k != nil && k.path == path {
			w.known[i].Store(known)
			return
		}
	}
	w.known[w.next.Add(1)%uint32(len(w.known))].Store(known)
}

// forget is for a session whose caller may be another one.
func (w *trails) forget() {
	for i := range w.known {
		w.known[i].Store(nil)
	}
}
