package dgm

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/wire"
)

// nearKeysMax bounds the existing keys that a waiting one is compared with.
const nearKeysMax = 1000

// listWaits describes what waits, oldest first, and names keys that look like misspellings of those waited for.
func (t *tenure) listWaits() (*wire.Response, error) {
	t.mu.Lock()
	var waits []gearsfs.Wait
	for _, o := range t.waits.all() {
		w := gearsfs.Wait{
			Session: o.sess.id, Client: o.sess.client, Op: o.kind(), Path: o.path, Ino: o.ino,
			Keys: slices.Clone(o.keys), Since: o.since, Passed: o.passed,
		}
		if w.Path == "" {
			w.Path = fmt.Sprintf("ino %d", o.ino)
		}
		waits = append(waits, w)
	}
	t.mu.Unlock()
	slices.SortStableFunc(waits, func(a, b gearsfs.Wait) int { return a.Since.Compare(b.Since) })
	resp := &wire.Response{}
	nearOf := make(map[string][]gearsfs.Key) // many wait for the same
	for _, w := range waits {
		if w.Op != "put" && w.Op != "lock" {
			place := fmt.Sprint(w.Ino, w.Keys)
			near, known := nearOf[place]
			if !known {
				var err error
				if near, err = t.nearKeys(w.Ino, w.Keys); err != nil {
					return nil, err
				}
				nearOf[place] = near
			}
			w.Near = near
		}
		resp.Waits = append(resp.Waits, waitToWire(w))
	}
	return resp, nil
}

// near names keys that look like misspellings of those asked for.
func (t *tenure) near(s *session, n *wire.Near) (*wire.Response, error) {
	if err := t.resolve(s, n.Path, &n.Target); err != nil {
		return nil, err
	}
	keys, err := takeKeys(n.Keys, nil)
	if err != nil {
		return nil, err
	}
	near, err := t.nearKeys(gearsfs.Ino(n.Target.Ino), keys)
	return &wire.Response{Names: keysToWire(near)}, err
}

// nearKeys returns the keys of a file, there or put to of late, that look like
// misspellings of keys. For a missing file these are those put to of late
// anywhere.
func (t *tenure) nearKeys(ino gearsfs.Ino, keys []gearsfs.Key) ([]gearsfs.Key, error) {
	t.mu.Lock()
	names := t.recent.keys(ino)
	t.mu.Unlock()
	if ino == 0 {
		return nearest(keys, names), nil
	}
	infos, err := t.vol.machine.ListStreams(ino, "", nearKeysMax, gearsfs.Root)
	if err != nil {
		if gearsfs.CodeOf(err) == gearsfs.ErrStale.Code || gearsfs.CodeOf(err) == gearsfs.ErrNotFound.Code {
			return nil, nil // removed meanwhile
		}
		return nil, err
	}
	for _, info := range infos {
		if !slices.Contains(names, info.Key) {
			names = append(names, info.Key)
		}
	}
	return nearest(keys, names), nil
}

// nearest returns those of names that at most two typing errors, and less than
// half of what was typed, turn into one of keys, nearest first.
func nearest(keys, names []gearsfs.Key) []gearsfs.Key {
	distances := make(map[gearsfs.Key]int)
	var near []gearsfs.Key
	for _, name := range names {
		if slices.Contains(keys, name) {
			continue
		}
		for _, key := range keys {
			if len(name)-len(key) > 2 || len(key)-len(name) > 2 {
				continue
			}
			d := editDistance(string(key), string(name))
			if d > 2 || 2*d >= len(key) {
				continue
			}
			if old, ok := distances[name]; !ok {
				near = append(near, name)
				distances[name] = d
			} else {
				distances[name] = min(old, d)
			}
		}
	}
	slices.SortStableFunc(near, func(a, b gearsfs.Key) int { return cmp.Compare(distances[a], distances[b]) })
	return near
}

// editDistance counts the bytes to insert, delete, replace or swap with their
// neighbour to turn a into b (optimal string alignment).
func editDistance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// waitingOn counts the takes, peeks and transactions that wait at a stream.
func (t *tenure) waitingOn(ino gearsfs.Ino, key gearsfs.Key) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.waits.spot(ino, key)
	if s == nil {
		return 0
	}
	return uint32(s.takes.Len() + s.peeks.Len() + s.txs.Len())
}

// checkRemote returns gearsfs.ErrInvalid where a remote can't be named so, or its
// addresses are none.
func checkRemote(name, addrs string) error {
	if gearsfs.Key(name).Check() != nil || slices.ContainsFunc([]byte(name), func(b byte) bool { return b == ':' || b == ' ' }) {
		return gearsfs.ErrInvalid.Because("%q is not a remote's name: it is like a key, without ':' and spaces", name)
	}
	if addrs == "" {
		return nil
	}
	_, err := newDialRoute(addrs, RemoteOptions{})
	return err
}
