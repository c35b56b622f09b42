/* Thumbnails; each is in the file once, however often it is shown. */

function pictureOf(place) {
  return null;
}
