package image

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"creel/internal/image/imagetest"
)

// layerTars is about size bytes of files as programs have them, in as many
// layers: half of it packs well, half does not.
func layerTars(b *testing.B, layers, size int) [][]byte {
	random := rand.NewChaCha8([32]byte{1})
	var out [][]byte
	for l := range layers {
		var files []imagetest.File
		for left := size / layers; left > 0; {
			n := min(left, 1<<(8+int(random.Uint64()%14)))
			body := bytes.Repeat([]byte("some words of text that repeat; "), n/32+1)[:n]
			random.Read(body[:n/2])
			files = append(files, imagetest.Reg(fmt.Sprintf("d%d/%d/f%d", l, len(files)%50, len(files)), string(body), 0o644))
			left -= n
		}
		out = append(out, imagetest.MakeLayer(b, files...))
	}
	return out
}

// BenchmarkLoad takes in an archive and builds its root file system; MB/s are
// of uncompressed layers.
func BenchmarkLoad(b *testing.B) {
	for _, layers := range []int{1, 4} {
		plain := layerTars(b, layers, 256<<20)
		packers := []struct {
			name string
			pack func(testing.TB, []byte) []byte
		}{{"plain", nil}, {"gzip", imagetest.PackGzip}, {"zstd", imagetest.PackZstd}}
		for _, p := range packers {
			img := imagetest.Image{Name: "bench:1"}
			total := 0
			for _, l := range plain {
				total += len(l)
				if p.pack != nil {
					l = p.pack(b, l)
				}
				img.Layers = append(img.Layers, l)
			}
			archive := imagetest.DockerArchive(b, img)
			b.Run(fmt.Sprintf("%s/%d", p.name, layers), func(b *testing.B) {
				b.SetBytes(int64(total))
				for b.Loop() {
					b.StopTimer()
					s := open(b)
					b.StartTimer()
					if _, err := s.Load(ctx, bytes.NewReader(archive)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
