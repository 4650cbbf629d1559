package dgm

import (
	"fmt"

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
			if f.step != 0 {
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
	dir, name, ino, err := t.vol.machine.ResolveTarget(path, s.caller)
	if err != nil {
		return err
	}
	if ino != 0 {
		*target = &wire.Target{Ino: uint64(ino)}
	} else {
		*target = &wire.Target{Dir: uint64(dir), Name: name}
	}
	return nil
}
