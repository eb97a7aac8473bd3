// Posts an image in each way that net/http has.
package main

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"time"
)

func main() {
	image, err := os.ReadFile(os.Args[2])
	check(err)
	var form bytes.Buffer
	writer := multipart.NewWriter(&form)
	part, err := writer.CreateFormFile("image", "a.png")
	check(err)
	_, err = part.Write(image)
	check(err)
	check(writer.Close())
	http.DefaultTransport.(*http.Transport).ExpectContinueTimeout = 30 * time.Second
	post("image/png", bytes.NewReader(image), "")
	post(writer.FormDataContentType(), &form, "")
	post("image/png", io.MultiReader(bytes.NewReader(image)), "") // of no known length: in chunks
	post("image/png", bytes.NewReader(image), "100-continue")
}

func post(kind string, body io.Reader, expect string) {
	request, err := http.NewRequest("POST", os.Args[1], body)
	check(err)
	request.Header.Set("Content-Type", kind)
	if expect != "" {
		request.Header.Set("Expect", expect)
	}
	response, err := http.DefaultClient.Do(request)
	check(err)
	answer, err := io.ReadAll(response.Body)
	check(err)
	check(response.Body.Close())
	fmt.Println(string(answer))
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
