package persist

import "github.com/gearsfs/gearsfs"

func placeAt(n uint64) gearsfs.Place {
	return gearsfs.Place{Pos: gearsfs.Pos(n * 100), Seq: gearsfs.Seq(n)}
}
